"""The explorer's server: the pages and the slide view from one process and one port."""
