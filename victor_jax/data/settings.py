"""What a recipe says about data: `config.data`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSettings:
    path: str  # whatever `sources.open_source` takes; "sample": made up in the work folder
    images: str  # the folder that image paths are relative to; empty where the data holds its images
    template: str
    tokenizer: str  # a folder; empty: that of init_from
    aspect: str
    max_length: int  # positions of a row, images expanded, registers not counted
    workers: int
    max_bad_rows: int
