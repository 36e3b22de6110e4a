"""The inner loops of the CPU engine: blocks of 16 subvectors against sets of codewords, in SIMD registers.

They are emitted as LLVM IR because a compiler does not find this shape by itself: the 16 x Q kept values of a block,
the running minimum and its index stay in registers while codewords stream past as scalars that are broadcast. One
codeword costs Q multiply-adds, a compare, a minimum and a select for 16 subvectors; finding the next codeword in the
bit sets is scalar work that overlaps with them. LLVM splits the 16-wide vectors into whatever the machine has.
"""

# The IR builder's methods are wrapped at run time, which type checkers do not see through
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

#: Subvectors of a block: one SIMD lane each.
BLOCK = 16
#: Kept-lane counts with a loop of their own, values in registers; others take the loop that reads them from memory.
UNROLLED = (1, 2, 3, 4, 6, 8, 16)
#: Those that also have a loop over the first half of a block, for blocks that are no fuller: masks with few subvectors.
NARROW = (2, 3, 4, 6, 8)

_F32 = ir.FloatType()
_I32 = ir.IntType(32)
_I64 = ir.IntType(64)
_FAST = ("nnan", "nsz", "contract")


def _splat(builder: ir.IRBuilder, scalar: ir.Value, width: int) -> ir.Value:
    undefined = ir.Constant(ir.VectorType(scalar.type, width), ir.Undefined)
    one = builder.insert_element(undefined, scalar, _I32(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(_I32, width), [0] * width))


def _load_vector(builder: ir.IRBuilder, pointer: ir.Value, width: int = BLOCK) -> ir.Value:
    load = builder.load(builder.bitcast(pointer, ir.VectorType(_F32, width).as_pointer()))
    load.align = 4
    return load


def _store_vector(builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value) -> None:
    store = builder.store(value, builder.bitcast(pointer, value.type.as_pointer()))
    store.align = 4


def _loop(b: ir.IRBuilder, count: ir.Value, name: str) -> tuple[ir.PhiInstr, ir.Block, ir.Block]:
    """Open `for i in range(count)`; returns i, the loop's head and its exit. Close it with `_next`."""
    entry = b.block
    head, body, done = (b.append_basic_block(f"{name}.{part}") for part in ("head", "body", "done"))
    b.branch(head)
    b.position_at_end(head)
    i = b.phi(_I64)
    i.add_incoming(_I64(0), entry)
    b.cbranch(b.icmp_signed("<", i, count), body, done)
    b.position_at_end(body)
    return i, head, done


def _next(b: ir.IRBuilder, i: ir.PhiInstr, head: ir.Block) -> None:
    i.add_incoming(b.add(i, _I64(1)), b.block)
    b.branch(head)


class _Scan:
    """Emits the search of one block, or of its first `width` members."""

    def __init__(
        self,
        builder: ir.IRBuilder,
        arrays: dict[str, ir.Value],
        sizes: dict[str, ir.Value],
        weighted: bool,
        width: int = BLOCK,
    ) -> None:
        self.builder, self.arrays, self.sizes, self.weighted, self.width = builder, arrays, sizes, weighted, width

    def value(self, name: str, q: ir.Value) -> ir.Value:
        """Kept values (or weights) of lane q: one for each subvector of the block."""
        pointer = self.builder.gep(self.arrays[name], [self.builder.mul(q, _I64(BLOCK))])
        return _load_vector(self.builder, pointer, self.width)

    def lane(self, q: ir.Value) -> ir.Value:
        """Offset of lane q in a codeword."""
        return self.builder.sext(self.builder.load(self.builder.gep(self.arrays["lanes"], [q])), _I64)

    def set_pointer(self, name: str, bucket: str, q: ir.Value) -> ir.Value:
        """First word of the bit set of lane q's bucket."""
        b = self.builder
        row = b.add(b.mul(self.lane(q), self.sizes["n_buckets"]), b.load(b.gep(self.arrays[bucket], [q])))
        return b.gep(self.arrays[name], [b.mul(row, self.sizes["n_words"])])

    def term(self, total: ir.Value, coordinate: ir.Value, w: ir.Value, h: ir.Value | None) -> ir.Value:
        """Add one lane's part of the score."""
        b = self.builder
        c = _splat(b, coordinate, self.width)
        if h is None:
            # score = |c|^2/2 - w.c orders codewords as the distance does
            return b.fsub(total, b.fmul(c, w, flags=_FAST), flags=_FAST)
        difference = b.fsub(w, c, flags=_FAST)
        return b.fadd(total, b.fmul(b.fmul(h, difference, flags=_FAST), difference, flags=_FAST), flags=_FAST)

    def start(self, codeword: ir.Value) -> ir.Value:
        """Score before any lane is added."""
        if self.weighted:
            return ir.Constant(ir.VectorType(_F32, self.width), [0.0] * self.width)
        return _splat(self.builder, self.builder.load(self.builder.gep(self.arrays["bias"], [codeword])), self.width)

    def emit(self, unrolled: int | None) -> None:
        """Search all candidates; `unrolled` is the number of lanes where it is known."""
        b = self.builder
        lanes = [_I64(q) for q in range(unrolled or 0)]
        self.fixed = [(self.value("w", q), self.value("h", q) if self.weighted else None, self.lane(q)) for q in lanes]
        pointers = [(self.set_pointer("at_least", "low", q), self.set_pointer("at_most", "high", q)) for q in lanes]
        entry = b.block
        word, words_head, words_done = _loop(b, self.sizes["n_words"], "word")
        body = b.block
        b.position_at_start(words_head)
        floats, integers = ir.VectorType(_F32, self.width), ir.VectorType(_I32, self.width)
        best, index = b.phi(floats), b.phi(integers)
        best.add_incoming(ir.Constant(floats, [float("inf")] * self.width), entry)
        index.add_incoming(ir.Constant(integers, [0] * self.width), entry)
        b.position_at_end(body)
        bits = self.candidates(word, pointers) if unrolled else self.candidates_rolled(word)
        new_best, new_index = self.search(word, bits, best, index, unrolled)
        best.add_incoming(new_best, b.block)
        index.add_incoming(new_index, b.block)
        _next(b, word, words_head)
        b.position_at_end(words_done)
        _store_vector(b, best, self.arrays["best"])
        _store_vector(b, index, self.arrays["index"])

    def candidates(self, word: ir.Value, pointers: list[tuple[ir.Value, ir.Value]]) -> ir.Value:
        """One word of the candidate set: AND over the lanes."""
        b = self.builder
        bits = _I64(-1)
        for pointer in (p for pair in pointers for p in pair):
            bits = b.and_(bits, b.load(b.gep(pointer, [word])))
        return bits

    def candidates_rolled(self, word: ir.Value) -> ir.Value:
        b = self.builder
        entry = b.block
        q, head, done = _loop(b, self.sizes["n_lanes"], "set")
        body = b.block
        b.position_at_start(head)
        bits = b.phi(_I64)
        bits.add_incoming(_I64(-1), entry)
        b.position_at_end(body)
        both = [self.set_pointer("at_least", "low", q), self.set_pointer("at_most", "high", q)]
        bits.add_incoming(b.and_(bits, self.candidates(word, [(both[0], both[1])])), b.block)
        _next(b, q, head)
        b.position_at_end(done)
        return bits

    def search(
        self, word: ir.Value, bits: ir.Value, best: ir.Value, index: ir.Value, unrolled: int | None
    ) -> tuple[ir.Value, ir.Value]:
        """Score the codewords of one word's set bits, lowest first, so that ties keep the lowest."""
        b = self.builder
        entry = b.block
        head, body, done = (b.append_basic_block(f"bit.{part}") for part in ("head", "body", "done"))
        b.branch(head)
        b.position_at_end(head)
        rest, best_here, index_here = b.phi(_I64), b.phi(best.type), b.phi(index.type)
        for phi, start in ((rest, bits), (best_here, best), (index_here, index)):
            phi.add_incoming(start, entry)
        b.cbranch(b.icmp_unsigned("!=", rest, _I64(0)), body, done)
        b.position_at_end(body)
        codeword = b.add(b.mul(word, _I64(64)), b.cttz(rest, ir.IntType(1)(1)))
        row = b.gep(self.arrays["codebook"], [b.mul(codeword, self.sizes["stride"])])
        score = self.start(codeword)
        if unrolled:
            for w, h, lane in self.fixed:
                score = self.term(score, b.load(b.gep(row, [lane])), w, h)
        else:
            score = self.score_rolled(score, row)
        less = b.fcmp_ordered("<", score, best_here, flags=_FAST)
        best_here.add_incoming(b.select(less, score, best_here), b.block)
        index_here.add_incoming(b.select(less, _splat(b, b.trunc(codeword, _I32), self.width), index_here), b.block)
        rest.add_incoming(b.and_(rest, b.sub(rest, _I64(1))), b.block)
        b.branch(head)
        b.position_at_end(done)
        return best_here, index_here

    def score_rolled(self, start: ir.Value, row: ir.Value) -> ir.Value:
        b = self.builder
        entry = b.block
        q, head, done = _loop(b, self.sizes["n_lanes"], "lane")
        body = b.block
        b.position_at_start(head)
        score = b.phi(start.type)
        score.add_incoming(start, entry)
        b.position_at_end(body)
        h = self.value("h", q) if self.weighted else None
        score.add_incoming(self.term(score, b.load(b.gep(row, [self.lane(q)])), self.value("w", q), h), b.block)
        _next(b, q, head)
        b.position_at_end(done)
        return score


_ARRAYS = ("at_least", "at_most", "low", "high", "codebook", "bias", "w", "h", "lanes", "best", "index")
_SIZES = ("n_buckets", "n_words", "stride", "n_lanes", "n_members")
# Added to the number of lanes to tell half-full blocks apart in one switch
_HALF = 1 << 32


def _codegen(weighted: bool) -> Callable[..., ir.Value]:
    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        values = dict(zip((*_ARRAYS, *_SIZES, "offset", "lane_offset"), args, strict=True))
        pointers = {
            name: context.make_array(array_type)(context, builder, values[name]).data
            for name, array_type in zip(_ARRAYS, signature.args, strict=False)
        }
        for name, offset in (("w", "offset"), ("h", "offset"), ("lanes", "lane_offset")):
            pointers[name] = builder.gep(pointers[name], [values[offset]])
        other, end = builder.append_basic_block("scan.any"), builder.append_basic_block("scan.end")
        half = builder.icmp_signed("<=", values["n_members"], _I64(BLOCK // 2))
        shape = builder.select(half, builder.add(values["n_lanes"], _I64(_HALF)), values["n_lanes"])
        switch = builder.switch(shape, other)
        narrow = () if weighted else NARROW
        for count, width in [*((c, BLOCK) for c in UNROLLED), *((c, BLOCK // 2) for c in narrow)]:
            block = builder.append_basic_block(f"scan.{count}.{width}")
            switch.add_case(_I64(count if width == BLOCK else count + _HALF), block)
            if width == BLOCK and count not in narrow:
                switch.add_case(_I64(count + _HALF), block)
            builder.position_at_end(block)
            _Scan(builder, pointers, values, weighted, width).emit(count)
            builder.branch(end)
        builder.position_at_end(other)
        _Scan(builder, pointers, values, weighted).emit(None)
        builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return codegen


def _signature() -> Any:
    f32, i32, i64, u64 = types.float32[::1], types.int32[::1], types.int64, types.uint64[::1]
    return types.void(u64, u64, i64[::1], i64[::1], f32, f32, f32, f32, i32, f32, i32, *[i64] * 7)


@intrinsic
def scan(
    typingctx: Any, at_least: Any, at_most: Any, low: Any, high: Any, codebook: Any, bias: Any, w: Any, h: Any,
    lanes: Any, best: Any, index: Any, n_buckets: Any, n_words: Any, stride: Any, n_lanes: Any, n_members: Any,
    offset: Any, lane_offset: Any,
) -> Any:  # fmt: skip
    """Nearest candidate of each member of a block, ties to the lowest: writes scores `best[16]` and `index[16]`.

    Where a block has 8 members or fewer, only the first 8 may be written.

    Candidates are the codewords in `at_least[lane, low[q]] & at_most[lane, high[q]]` for every kept lane `lane =
    lanes[lane_offset + q]`, bit sets of `n_words` words. Arrays are flat and contiguous: `codebook[k * stride +
    lane]`, `bias[k]` (half the squared norm over the block's lanes), `w[offset + q * 16 + member]`. `h` is not read.
    Scores are `bias - w.c`.
    """
    return _signature(), _codegen(weighted=False)


@intrinsic
def scan_weighted(
    typingctx: Any, at_least: Any, at_most: Any, low: Any, high: Any, codebook: Any, bias: Any, w: Any, h: Any,
    lanes: Any, best: Any, index: Any, n_buckets: Any, n_words: Any, stride: Any, n_lanes: Any, n_members: Any,
    offset: Any, lane_offset: Any,
) -> Any:  # fmt: skip
    """`scan` with importance weights `h` laid out like `w`; `bias` is not read. Scores are distances."""
    return _signature(), _codegen(weighted=True)


def _reduce_vector(b: ir.IRBuilder, vector: ir.Value, comparison: str) -> ir.Value:
    """Smallest (`<`) or largest (`>`) element, by halving."""
    width = BLOCK // 2
    while width:
        undefined = ir.Constant(vector.type, ir.Undefined)
        lower, upper = (
            b.shuffle_vector(vector, undefined, ir.Constant(ir.VectorType(_I32, width), list(range(low, low + width))))
            for low in (0, width)
        )
        vector = b.select(b.fcmp_ordered(comparison, lower, upper, flags=_FAST), lower, upper)
        width //= 2
    return b.extract_element(vector, _I32(0))


def _clamp(b: ir.IRBuilder, x: ir.Value, largest: ir.Value) -> ir.Value:
    zero = ir.Constant(_F32, 0.0)
    x = b.select(b.fcmp_ordered(">", x, zero, flags=_FAST), x, zero)
    return b.select(b.fcmp_ordered("<", x, largest, flags=_FAST), x, largest)


@intrinsic
def interval(
    typingctx: Any, w: Any, reach: Any, base: Any, scale: Any, low: Any, high: Any, q: Any, lane: Any, largest: Any,
    offset: Any,
) -> Any:  # fmt: skip
    """Buckets of the ends of a block's interval on one lane.

    `low[q]` is the bucket of `min(w - reach)`, `high[q]` that of `max(w + reach)`, over the 16 members `w[offset:]`,
    `reach[:16]`. The bucket of x is `(x - base[lane]) * scale[lane]`, clamped to `0 .. largest` and truncated.
    """
    f32, i64 = types.float32[::1], types.int64
    signature = types.void(f32, f32, f32, f32, i64[::1], i64[::1], i64, i64, types.float32, i64)

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        data = [context.make_array(t)(context, b, a).data for t, a in zip(signature.args[:6], args[:6], strict=True)]
        q, lane, largest, offset = args[6:]
        value, distance = _load_vector(b, b.gep(data[0], [offset])), _load_vector(b, data[1])
        origin, factor = (b.load(b.gep(pointer, [lane])) for pointer in data[2:4])
        ends = (
            _reduce_vector(b, b.fsub(value, distance), "<"),
            _reduce_vector(b, b.fadd(value, distance), ">"),
        )
        for end, target in zip(ends, data[4:], strict=True):
            x = _clamp(b, b.fmul(b.fsub(end, origin), factor), largest)
            b.store(b.fptosi(x, _I64), b.gep(target, [q]))
        return context.get_dummy_value()

    return signature, codegen
