class DType:
    float64: DType
    float32: DType
    float16: DType
    bfloat16: DType

class Rule:
    task_vector: Rule
    linear_combination: Rule

class Elect:
    none: Elect
    mass: Elect
    count: Elect

class Combine:
    sum: Combine
    mean: Combine
    max: Combine

class Scalars:
    def __init__(
        self, *, coef: float, vote: float, share: float, index: int, keep_below: int
    ) -> None: ...

class Pass:
    rule: Rule
    elect: Elect
    combine: Combine
    scale: float
    divisor: float
    seed: int
    has_base: bool
    merges: bool
    wide: bool
    base: DType
    expert: DType
    out: DType
    experts: int
    tiles: int
    blocks: int
    per_expert: int
    dtypes: int
    segments: int
    scalars: int
    coins: int
    windows: int
    found: int
    kept: int
    doubts: int

SPAN: int

def fuse(todo: Pass, scalars: list[Scalars], device: int, stream: int) -> None: ...
def count(
    todo: Pass,
    chunks: int,
    brackets: int,
    many: int,
    above: int,
    inside: int,
    tallies: int,
    device: int,
    stream: int,
) -> None: ...
def gather(
    todo: Pass,
    index: int,
    starts: int,
    lines: int,
    count: int,
    back: bool,
    device: int,
    stream: int,
) -> None: ...
def masked_sums(todo: Pass, blocks: int, out: int, device: int, stream: int) -> None: ...
def gram(todo: Pass, blocks: int, out: int, device: int, stream: int) -> None: ...
