"""What every part of a recipe is: a frozen pydantic model that refuses unknown keys."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base of all configurations: immutable, no unknown keys, a docstring for every field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
