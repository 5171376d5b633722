"""Where the windows of convolutions and pools lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deepshap_ir.engine.context import Context, Expansion


@dataclass(frozen=True)
class Windows:
    """Window p has its element k at ``p stride + k dilation - before``; one entry per spatial dimension.

    Attributes
    ----------
    sizes : lengths of what the windows slide over: the input of Conv and pools, the output of ConvTranspose.
    counts : numbers of windows.
    kernel : numbers of elements of a window.
    before, after : padding, `auto_pad` and `output_shape` resolved.
    """

    sizes: tuple[int, ...]
    counts: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(
        cls, ctx: Context | Expansion, kernel: Sequence[int], sizes: Sequence[int], counts: Sequence[int]
    ) -> Windows:
        """The windows of a node, from its attributes and the lengths that its shapes give."""
        rank = len(kernel)
        strides = tuple(ctx.attribute("strides") or [1] * rank)
        dilations = tuple(ctx.attribute("dilations") or [1] * rank)
        mode = ctx.attribute("auto_pad", "NOTSET")
        if mode.startswith("SAME") or ctx.attribute("output_shape"):
            bare = cls(tuple(sizes), tuple(counts), tuple(kernel), strides, dilations, (0,) * rank, (0,) * rank)
            extra = ctx.attribute("output_padding") or [0] * rank
            totals = [max(0, e - rest) for e, rest in zip(extra, bare.rest, strict=True)]
            small, large = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
            before, after = (small, large) if mode == "SAME_UPPER" else (large, small)
        else:
            pads = tuple([0] * 2 * rank if mode == "VALID" else ctx.attribute("pads") or [0] * 2 * rank)
            before, after = pads[:rank], pads[rank:]
        return cls(tuple(sizes), tuple(counts), tuple(kernel), strides, dilations, before, after)

    @property
    def pads(self) -> list[int]:
        """The padding as an attribute."""
        return [*self.before, *self.after]

    @property
    def overlap(self) -> bool:
        """Whether two windows may share an element."""
        return any(s < span for s, span in zip(self.strides, self.spans, strict=True))

    @property
    def spans(self) -> list[int]:
        """From the first to the last element of a window."""
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]

    @property
    def reaches(self) -> list[int]:
        """From the first element of the first window to the last element of the last window."""
        return [(n - 1) * s + span for n, s, span in zip(self.counts, self.strides, self.spans, strict=True)]

    @property
    def rest(self) -> list[int]:
        """How much of the padded input lies behind the last window; negative where it reaches beyond."""
        padded = [size + b + a for size, b, a in zip(self.sizes, self.before, self.after, strict=True)]
        return [length - reach for length, reach in zip(padded, self.reaches, strict=True)]

    @property
    def behind(self) -> list[int]:
        """How far the last window reaches behind the input itself; negative where it ends before."""
        ends = zip(self.reaches, self.sizes, self.before, strict=True)
        return [reach - size - before for reach, size, before in ends]
