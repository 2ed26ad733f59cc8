"""Conditions of which a video has one, whatever the number of its frames."""

from __future__ import annotations

from typing import Any

import comfy.conds


class PerVideo(comfy.conds.CONDRegular):
    """A condition with one row per guidance branch: joined over conditions, never repeated over frames."""

    def process_cond(self, batch_size: int, **_options: Any) -> PerVideo:
        return self._copy_with(self.cond)
