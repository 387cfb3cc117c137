"""Which history contains which: branches first, positions only where the branches agree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import frozen

from resilience.model.groups import MemberFacts
from resilience.model.log import Branch
from resilience.model.positions import Position


@frozen
class Line:
    """One history from its beginning to `end`: the branches it is made of, oldest first."""

    branches: tuple[Branch, ...]
    end: Position

    @classmethod
    def of(cls, member: MemberFacts) -> Line | None:
        """Return the history that a member has on disk; None where nobody can tell."""
        return None if member.durable is None else cls.up_to(member.branches, member.durable)

    @classmethod
    def up_to(cls, branches: Sequence[Branch], end: Position) -> Line | None:
        """Return the history that leads over `branches` to `end`; None if none of them is the one that it lies on."""
        if not branches:
            return cls((Branch(name=end.branch),), end)
        names = [branch.name for branch in branches]
        return cls(tuple(branches[: names.index(end.branch) + 1]), end) if end.branch in names else None

    def leaves(self, index: int) -> int:
        """Return where it leaves one of its branches for the next, or ends."""
        following = self.branches[index + 1 : index + 2]
        fork = following[0].forked_at if following else None
        return min(fork.offset, self.end.offset) if fork is not None else self.end.offset


def alike(a: Line, b: Line) -> int:
    """Count the branches that two histories have in common, from the first on."""
    count = 0
    for one, other in zip(a.branches, b.branches, strict=False):
        if _identity(one) != _identity(other):
            break
        count += 1
    return count


def shared(a: Line, b: Line) -> int | None:
    """Return the offset up to which two histories are the same; None if they have not even their beginning in common.

    Up to there, offsets of the one are offsets of the other, and can be compared.
    """
    count = alike(a, b)
    return min(a.leaves(count - 1), b.leaves(count - 1)) if count else None


def contains(a: Line, b: Line) -> bool:
    """Tell whether `a` has everything that `b` has."""
    return shared(a, b) == b.end.offset


def supersedes(a: Line, b: Line) -> bool:
    """Tell whether `a` is on a younger branch that descends from the one `b` is on, wherever `b` ends."""
    return len(a.branches) > len(b.branches) == alike(a, b)


def same_branch(a: Line, b: Line) -> bool:
    """Tell whether two histories end on the same branch; then they differ in how far they go and in nothing else."""
    return len(a.branches) == len(b.branches) == alike(a, b)


def main_line(lines: Iterable[Line]) -> Line | None:
    """Return the furthest history on the youngest branch; None if none of the branches descends from all the others."""
    known = list(lines)
    for line in known:
        if all(alike(line, other) == len(other.branches) for other in known):
            return max((each for each in known if not supersedes(line, each)), key=lambda each: each.end.offset)
    return None


def _identity(branch: Branch) -> tuple[str, str | None, int | None]:
    # Two servers that were promoted apart may have given their branches the same name.
    return branch.name, branch.parent, None if branch.forked_at is None else int(branch.forked_at.offset)
