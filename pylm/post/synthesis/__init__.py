"""The parts of `pylm.post.synthesize`: what is read from source code, what is asked, what is spoilt."""
