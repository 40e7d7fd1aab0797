"""The median of 3x3 or 5x5 neighbours on the CPU, exact, by networks that neighbouring columns share.

preprocess/tvl1/eager.py says the same in whole pictures, and says why it is the median.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocess.tvl1.lanes import COUNT, Lanes, least, load, most, put, store, value
from preprocess.tvl1.machine_code import compiled

Floats = NDArray[np.float32]
Several = Any  # a tuple of lanes


@compiled
def filter_rows(values: Floats, first: int, row: int, height: int, width: int, side: int) -> None:
    """In place: the picture whose row y begins at `first + y row`. Past the border the nearest value counts."""
    border = side // 2
    length = (width + 2 * COUNT - 1) // COUNT * COUNT + 2 * COUNT
    near = np.zeros(5 * length, np.float32)  # the rows around, as they were
    columns, tens = np.zeros(5 * length, np.float32), np.zeros(10 * length, np.float32)
    for y in range(-border, height + border):
        to = (y + border) % side * length
        if y < height:
            _take(values, first + max(y, 0) * row, near, to, width, border)
        else:
            _again(near, (height - 1 + border) % side * length, to, length)
        if y >= border:
            out = first + (y - border) * row
            if side == 3:
                _three(near, columns, values, out, width, length)
            else:
                _five(near, columns, tens, values, out, width, length)


@compiled
def _take(values: Floats, start: int, near: Floats, to: int, width: int, border: int) -> None:
    for x in range(0, width, COUNT):
        store(near, to + border + x, load(values, start + x))
    for x in range(border):
        put(near, to + x, value(values, start))
        put(near, to + border + width + x, value(values, start + width - 1))


@compiled
def _again(near: Floats, start: int, to: int, length: int) -> None:
    for x in range(0, length, COUNT):
        store(near, to + x, load(near, start + x))


@compiled
def _order(one: Lanes, other: Lanes) -> Several:
    return least(one, other), most(one, other)


@compiled
def _three(near: Floats, columns: Floats, out: Floats, to: int, width: int, length: int) -> None:
    for x in range(0, width + 2, COUNT):
        low, middle = _order(load(near, x), load(near, x + length))
        middle, high = _order(middle, load(near, x + 2 * length))
        low, middle = _order(low, middle)
        store(columns, x, low)
        store(columns, x + length, middle)
        store(columns, x + 2 * length, high)
    for x in range(0, width, COUNT):
        low = most(most(load(columns, x), load(columns, x + 1)), load(columns, x + 2))
        m = x + length
        one, other = _order(load(columns, m), load(columns, m + 1))
        middle = most(one, least(other, load(columns, m + 2)))
        h = m + length
        high = least(least(load(columns, h), load(columns, h + 1)), load(columns, h + 2))
        one, other = _order(low, middle)
        store(out, to + x, most(one, least(other, high)))


@compiled
def _five(near: Floats, columns: Floats, tens: Floats, out: Floats, to: int, width: int, length: int) -> None:
    for x in range(0, width + 4, COUNT):
        five = _ordered(_fives(near, x, length))
        _keep(columns, x, length, five)
    for x in range(0, width + 2, COUNT):
        low, high = _merged(_fives(columns, x, length), _fives(columns, x + 1, length))
        _keep(tens, x, length, low)
        _keep(tens, x + 5 * length, length, high)
    for x in range(0, width, COUNT):
        evens = _around(_tens(tens, x, length), _tens(tens, x + 2, length))
        odds = _around(_tens(tens, x + length, length), _tens(tens, x + 2 + length, length))
        m0, m1 = _order(odds[0], evens[1])
        m2, m3 = _order(odds[1], evens[2])
        m4, m5 = _order(odds[2], evens[3])
        last = x + 4
        found = least(m5, most(m0, load(columns, last + 4 * length)))
        found = least(found, most(m1, load(columns, last + 3 * length)))
        found = least(found, most(m2, load(columns, last + 2 * length)))
        found = least(found, most(m3, load(columns, last + length)))
        store(out, to + x, least(found, most(m4, load(columns, last))))


@compiled
def _fives(columns: Floats, x: int, length: int) -> Several:
    return (
        load(columns, x),
        load(columns, x + length),
        load(columns, x + 2 * length),
        load(columns, x + 3 * length),
        load(columns, x + 4 * length),
    )


@compiled
def _keep(rows: Floats, x: int, length: int, five: Several) -> None:
    store(rows, x, five[0])
    store(rows, x + length, five[1])
    store(rows, x + 2 * length, five[2])
    store(rows, x + 3 * length, five[3])
    store(rows, x + 4 * length, five[4])


@compiled
def _tens(tens: Floats, x: int, length: int) -> Several:
    """Every other one of ten."""
    return _fives(tens, x, 2 * length)


@compiled
def _ordered(five: Several) -> Several:
    a, b, c, d, e = five
    a, d = _order(a, d)
    b, e = _order(b, e)
    a, c = _order(a, c)
    b, d = _order(b, d)
    a, b = _order(a, b)
    c, e = _order(c, e)
    b, c = _order(b, c)
    d, e = _order(d, e)
    c, d = _order(c, d)
    return a, b, c, d, e


@compiled
def _merged(one: Several, other: Several) -> Several:
    """Two ordered fives in order: the lower five and the upper five."""
    e0, ea = _order(one[0], other[0])  # 0, 2 and 4 of both
    eb, e5 = _order(one[4], other[4])
    ea, eb = _order(ea, eb)
    ec, ed = _order(one[2], other[2])
    e1, e2 = _order(ec, ea)
    e3, e4 = _order(ed, eb)
    o0, oa = _order(one[1], other[1])  # 1 and 3
    ob, o3 = _order(one[3], other[3])
    o1, o2 = _order(oa, ob)
    r1, r2 = _order(o0, e1)
    r3, r4 = _order(o1, e2)
    r5, r6 = _order(o2, e3)
    r7, r8 = _order(o3, e4)
    return (e0, r1, r2, r3, r4), (r5, r6, r7, r8, e5)


@compiled
def _around(one: Several, other: Several) -> Several:
    """Of two ordered fives the fourth to the seventh."""
    low, high = _order(most(one[0], other[0]), least(one[4], other[4]))
    low = most(low, least(one[2], other[2]))
    high = least(high, most(one[2], other[2]))
    one1, other1 = _order(most(one[1], other[1]), least(one[3], other[3]))
    r3, r4 = _order(one1, low)
    r5, r6 = _order(other1, high)
    return r3, r4, r5, r6
