"""Commands of `pylm` besides those of a run: `pylm dedup`, and `pylm tokenizer` for any tokenizer."""
