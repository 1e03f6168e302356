"""Which functions and types a user's SQL may use: DuckDB accounts for rows, not for what one function makes of one."""

from __future__ import annotations

_OPERATORS = "+ - * / // % ** ^ & | || = == != <> < <= > >= ~~ !~~ ~~* !~~* ~~~ ^@"
_TEXT = (
    "lower upper lcase ucase trim ltrim rtrim length len strlen char_length character_length substring substr left "
    "right reverse concat contains starts_with ends_with prefix suffix instr position strpos split_part strip_accents "
    "regexp_matches regexp_full_match regexp_extract like_escape not_like_escape ilike_escape not_ilike_escape"
)
_NUMBERS = (
    "abs sign round round_even floor ceil ceiling trunc least greatest mod fmod sqrt cbrt ln log log2 log10 exp pow "
    "power sin cos tan asin acos atan atan2 radians degrees pi isnan isinf isfinite add subtract multiply divide"
)
_DATES = (
    "date_part datepart date_trunc datetrunc date_diff datediff date_sub datesub date_add age year quarter month week "
    "day hour minute second dayofweek dayofmonth dayofyear isodow isoyear weekofyear dayname monthname last_day epoch "
    "make_date make_timestamp strftime strptime try_strptime to_years to_months to_weeks to_days to_hours to_minutes "
    "to_seconds"
)

_PLAIN_TYPES = (
    "boolean bool tinyint smallint integer int int1 int2 int4 int8 short long signed bigint hugeint utinyint usmallint "
    "uinteger ubigint float float4 real double float8 decimal numeric varchar text string char date time timestamp "
    "datetime timestamptz interval"
)
_AMPLIFIERS = (
    "repeat lpad rpad printf format bar levenshtein editdist3 damerau_levenshtein bitstring bitstring_agg list_resize "
    "array_resize range generate_series generate_subscripts equi_width_bins"
)
_SIDE_EFFECTS = (
    "sleep_ms pg_sleep write_log setseed nextval setval finalize combine combine_aggr to_aggregate_state "
    "create_sort_key remap_struct json_execute_serialized_sql json_deserialize_sql json_serialize_plan make_type "
    "cast_to_type"
)

# `where`: what gives no more than it is given, one row at a time.
ROW_FUNCTIONS = frozenset(f"{_OPERATORS} {_TEXT} {_NUMBERS} {_DATES} if nullif ifnull typeof".split())
ROW_TYPES = frozenset(_PLAIN_TYPES.split())

# `sql`: what makes much of little, waits, writes, or runs something else, where limits do not reach.
REFUSED_FUNCTIONS = frozenset(f"{_AMPLIFIERS} {_SIDE_EFFECTS}".split())
# After FROM rows are streamed and counted; scans by pointer and `query` would pass by every check.
TABLE_FUNCTIONS = frozenset({"range", "generate_series", "unnest", "json_each", "json_tree"})
REFUSED_TYPES = frozenset({"array"})  # of a fixed length: each row takes all of it
