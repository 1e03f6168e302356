"""The options of SGCL, the faults of the published code among them, and the sizes that a set of tiles allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from encoder.augment import AugmentConfig
from encoder.errors import UsageError
from encoder.methods.backbone import NetworkOptions
from encoder.methods.protocol import MethodOptions

LEAST_TILES = 100


class PublishedFaults(BaseModel):
    """What the published code does beside the paper; each is corrected unless it is asked for.

    Attributes:
        spurious_ones: in the denominator of the spatial loss every tile that is no positive counts as one.
        constant_negatives: no gradient flows through the similarities to hard negatives, so that the spatial
            loss only attracts.
        unshared_clusters: processes beside the first one keep random cluster labels.
        histogram_ranks: ranks of hard negatives are drawn as if the Beta density began at its smallest sample
            and ended at its largest, which moves the mean rank from 0.25 to 0.32 of the list.
        lonely_anchors: a tile without spatial neighbours takes the first tile as its auxiliary anchor, and one
            without any positive adds a constant to the loss.
        self_negatives: random negatives may be the anchor itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    spurious_ones: bool = False
    constant_negatives: bool = False
    unshared_clusters: bool = False
    histogram_ranks: bool = False
    lonely_anchors: bool = False
    self_negatives: bool = False


class SgclOptions(MethodOptions):
    """Options of SGCL; counts are the paper's, for 680,000 tiles, and shrink with the set.

    Not the paper's are what bounds the work at its size (`shared_negatives`, `semantic_kept`, `ranked_tiles`),
    `ramp_share`, which matters to runs of few epochs, and the views, which jitter stains.

    Attributes:
        network: the encoder.
        view_px: side of the whole views; None takes the tile's side.
        corner_px: side of the corner views; None takes 3/7 of `view_px`, as 96 to 224.
        hidden_dim: width of the projection's hidden layer.
        projection_dim: length of the projected vectors that are compared and remembered.
        augment: how whole views are made.
        corner_augment: how views of a corner, a quarter of the tile, are made.
        temperature: of instance and corner discrimination.
        spatial_temperature: of the spatial loss.
        instance_negatives: random negatives of an anchor; corners take a quarter of them from each corner's bank.
        shared_negatives: whether the anchors of a step share their random negatives, which costs one product
            with them, or draw each their own, as published, which costs one product with the whole bank.
        neighbour_tiles: spatial neighbours are closer than this many tile sides.
        semantic_nearest: semantic neighbours are among so many nearest in the bank.
        semantic_kept: at most so many of them, the nearest, are remembered for each tile.
        clusters, clusterings, cluster_iterations: semantic neighbours share their cluster in every clustering.
        hard_share: hard negatives are among this share of the tiles, those most similar in pooled features.
        hard_negatives: how many are drawn.
        hard_beta: parameters of the Beta density over their ranks.
        ranked_tiles: how many random tiles are ranked in a step; a set that is not larger is ranked whole.
        bank_momentum: share of the old entry that stays when a bank is updated.
        bank_precision: numbers of the banks; `fp16` halves their memory.
        spatial_weight: of the spatial loss at its full strength; 0 leaves it out, and with it all about places.
        corner_weight: of the corner discrimination; 0 leaves it out.
        ramp_epochs: epochs over which the spatial loss reaches its full strength.
        ramp_share: it is reached after this share of the run at the latest, but never in the first epoch.
        faults: of the published code, to be restored.
    """

    name: Literal["sgcl"] = "sgcl"
    network: NetworkOptions = NetworkOptions()
    view_px: int | None = Field(default=None, ge=16)
    corner_px: int | None = Field(default=None, ge=8)
    hidden_dim: int = Field(default=512, ge=1)
    projection_dim: int = Field(default=128, ge=1)
    augment: AugmentConfig = AugmentConfig(min_area=0.2)
    corner_augment: AugmentConfig = AugmentConfig(min_area=0.2, max_area=0.56)
    temperature: float = Field(default=0.2, gt=0)
    spatial_temperature: float = Field(default=0.07, gt=0)
    instance_negatives: int = Field(default=65_536, ge=4)
    shared_negatives: bool = True
    neighbour_tiles: float = Field(default=3.0, gt=0)
    semantic_nearest: int = Field(default=4096, ge=1)
    semantic_kept: int = Field(default=512, ge=1)
    clusters: int = Field(default=1000, ge=2)
    clusterings: int = Field(default=3, ge=1)
    cluster_iterations: int = Field(default=20, ge=1)
    hard_share: float = Field(default=0.2, gt=0, le=1)
    hard_negatives: int = Field(default=4096, ge=1)
    hard_beta: tuple[float, float] = (5.0, 15.0)
    ranked_tiles: int = Field(default=32_768, ge=LEAST_TILES)
    bank_momentum: float = Field(default=0.5, ge=0, lt=1)
    bank_precision: Literal["fp32", "fp16"] = "fp32"
    spatial_weight: float = Field(default=1.0, ge=0)
    corner_weight: float = Field(default=1.0, ge=0)
    ramp_epochs: int = Field(default=10, ge=1)
    ramp_share: float = Field(default=0.25, gt=0, le=1)
    faults: PublishedFaults = PublishedFaults()


@dataclass(frozen=True)
class Sizes:
    """The counts that are used for a set of tiles.

    Attributes:
        instance_negatives: random negatives of an anchor; a multiple of 4.
        clusters: of each clustering.
        semantic_nearest: semantic neighbours are among so many nearest.
        semantic_kept: most semantic neighbours of a tile.
        ranked_tiles: tiles ranked in a step.
        hard_list: length of the ranked list that hard negatives come from.
        hard_negatives: drawn from it.
    """

    instance_negatives: int
    clusters: int
    semantic_nearest: int
    semantic_kept: int
    ranked_tiles: int
    hard_list: int
    hard_negatives: int


def settle_sizes(options: SgclOptions, tiles: int) -> Sizes:
    """Shrink the counts of the options to what a set of tiles allows.

    Random negatives are at most half of the tiles; a cluster has 50 tiles on average or
    more, except that there are always four, since with fewer nothing would be left to be a negative; semantic
    neighbours are among a twentieth of the tiles; hard negatives are no more than the list they come from.

    Args:
        options: the counts that are wished for.
        tiles: number of tiles.

    Raises:
        UsageError: there are fewer than 100 tiles, too few for any of this to mean something.
    """
    if tiles < LEAST_TILES:
        raise UsageError(
            f"There are {tiles} tiles; sgcl needs at least {LEAST_TILES}, since it compares each with its "
            "neighbours, with clusters and with all others.",
            fix="Give more tiles, or train the contrastive method.",
        )
    nearest = min(options.semantic_nearest, tiles // 20)
    ranked = min(options.ranked_tiles, tiles)
    listed = max(1, round(options.hard_share * ranked))
    return Sizes(
        instance_negatives=4 * (min(options.instance_negatives, tiles // 2) // 4),
        clusters=min(options.clusters, max(4, tiles // 50)),
        semantic_nearest=nearest,
        semantic_kept=min(options.semantic_kept, nearest),
        ranked_tiles=ranked,
        hard_list=listed,
        hard_negatives=min(options.hard_negatives, listed),
    )
