"""MAWE: forward splatting, warp error and mean flow of recorded frames and flow fields."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from streaming_core.metrics.mawe import mean_flow_length, official_mawe, pair_errors, summarize, warp_error
from streaming_core.metrics.splat import forward_splat

from ..cases import Case
from ..replay import Comparison, replay


@replay("streamingmodelscope", "mawe", rtol=1e-5)
def mawe(case: Case) -> Iterator[Comparison]:
    frames, flows = case.input("video_uint8").float(), case.input("flows")
    coefficient = case.config["coeff"]
    warped, unknown = forward_splat(frames[:-1], flows)
    yield Comparison("warped", warped, case.output("warped"), atol=0)
    yield Comparison("unknown_mask", unknown.float(), case.output("unknown_mask"), atol=0)
    yield Comparison("warp_error", warp_error(frames[1:], warped, unknown), case.output("warp_error"))
    yield Comparison("mean_flow", mean_flow_length(flows), case.output("mean_flow"))
    errors, lengths = pair_errors(frames[:-1], frames[1:], flows)
    got, want = official_mawe(errors, lengths, coefficient), case.output("mawe")
    # A recorded "not a number" (a pair without flow and without error) is agreed with by computing one.
    yield Comparison("mawe is a number", got.isnan().float(), want.isnan().float(), atol=0)
    if not want.isnan():
        yield Comparison("mawe", got, want)
    if want.isfinite():
        total = summarize(errors.tolist(), lengths.tolist(), [False] * len(errors), coefficient)
        yield Comparison("mawe of the summary", torch.tensor(total.value), want)
