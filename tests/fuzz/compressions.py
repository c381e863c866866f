"""Written compressions. What is taken means the same when its own written form is read again."""

from typing import Any, get_args, get_origin, get_type_hints

from hypothesis import strategies as st
from talking import CONFIG

from fuzz.property import REFUSALS, Surface
from fuzz.strange import scalars, texts
from victor_jax.compression.spec import METHODS, parse

numbers = st.one_of(
    st.integers(0, 12).map(str),
    st.sampled_from(
        ("50", "100", "1-2", "3-2-1", "keep", "renumber", "-1", "00", "1_0", "1.0", "٣", "10001", "9" * 5000)
    ),
)


def right(kind: Any) -> st.SearchStrategy[str]:
    """Values of a field's type."""
    if get_origin(kind) is tuple:
        return st.lists(st.integers(0, 5), min_size=1, max_size=3).map(lambda found: "-".join(map(str, found)))
    return st.sampled_from(get_args(kind)) if get_args(kind) else st.integers(1, 9).map(str)


def of_method(name: str) -> st.SearchStrategy[str]:
    """Its fields, most of them once and right."""
    kinds = {key: kind for key, kind in get_type_hints(METHODS[name]).items() if key not in ("config", "return")}
    field = st.builds("{}={}".format, st.sampled_from([*kinds, "dtype", ""]), numbers)
    own = [st.one_of(right(kind).map(f"{key}={{}}".format), st.just("")) for key, kind in kinds.items()]
    some = st.one_of(*[st.tuples(*own)] * 4, st.lists(field, max_size=3))
    return some.map(lambda given: ":".join(filter(None, [name, ",".join(filter(None, given))])))


one = st.sampled_from(sorted(METHODS)).flatmap(of_method)
written = st.one_of(one, one, st.builds("{}{}{}".format, one, st.sampled_from(("+", "+", ":", ",", " ")), one))


class Compressions(Surface):
    name, short = "compressions", 300
    inputs = st.one_of(written, written, written, written, st.sampled_from(sorted(METHODS)), scalars, texts)

    def attempt(self, prepared, room):
        return parse(prepared, CONFIG)

    def compare(self, prepared, result):
        if isinstance(result, REFUSALS):
            return
        again = parse(result.spec, CONFIG)
        assert (again.spec, again.plan, again.registers) == (result.spec, result.plan, result.registers)
        assert result.plan.depth == CONFIG.language.depth
        assert result.tokens_per_image(CONFIG) > 0
