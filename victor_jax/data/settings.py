"""What a recipe says about data: `config.data`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from victor_jax.data.templates import TEMPLATES
from victor_jax.limits import Count, Limit, Positive

Template = Annotated[str, Limit(f"one of {', '.join(TEMPLATES)}", lambda value: value in TEMPLATES)]


@dataclass(frozen=True)
class DataSettings:
    path: str  # whatever `sources.open_source` takes; "sample": made up in the work folder
    images: str  # the folder that image paths are relative to; empty where the data holds its images
    template: Template
    tokenizer: str  # a folder; empty: that of init_from
    aspect: Literal["square", "pad"]
    index: str  # the folder that keeps how long each row is, for any run over the data; empty: in the work folder
    max_length: Positive  # positions of a row, images expanded, registers not counted
    workers: Count
    max_bad_rows: Count
