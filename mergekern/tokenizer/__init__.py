"""Vocabularies: the output's tokenizer, and the models' rows brought into its order."""

from __future__ import annotations

from mergekern.tokenizer.align import Alignment as Alignment
from mergekern.tokenizer.align import align as align
from mergekern.tokenizer.align import truncate as truncate
from mergekern.tokenizer.models import Models as Models
