"""Which history contains which: any tree of branches, compared with what its bytes would say."""

from __future__ import annotations

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from resilience.model.log import Branch
from resilience.planning.ancestry import Line, contains, main_line, same_branch, shared, supersedes

from .groups import at, forked, gone, group, planned, primary, sample, standby, sync_of


@st.composite
def lines(draw: st.DrawFn) -> Line:
    """A line through a tree; several have branches of the same name that left at different places."""
    branches, low = [Branch(name="1")], 0
    for _ in range(draw(st.integers(0, 2))):
        fork = draw(st.integers(low, low + 3))
        name = draw(st.sampled_from([name for name in "234" if name > branches[-1].name] or ["5"]))
        branches.append(Branch(name=name, parent=branches[-1].name, forked_at=at(fork, branches[-1].name)))
        low = fork
    return Line(tuple(branches), at(low + draw(st.integers(0, 3)), branches[-1].name))


def history(line: Line) -> list[str]:
    """Byte for byte, the path of branches that each one was written on."""
    written: list[str] = []
    path = ""
    for number, branch in enumerate(line.branches):
        path += f"/{branch.name}@{'' if branch.forked_at is None else int(branch.forked_at.offset)}"
        written += [path] * (line.leaves(number) - len(written))
    return written


@settings(max_examples=300, deadline=None)
@given(a=lines(), b=lines())
def test_two_histories_are_alike_up_to_the_byte_where_they_differ(a: Line, b: Line) -> None:
    ours, theirs = history(a), history(b)
    same = 0
    while same < min(len(ours), len(theirs)) and ours[same] == theirs[same]:
        same += 1
    assert shared(a, b) == shared(b, a) == same
    assert contains(a, b) == (theirs == ours[: len(theirs)])
    assert not (supersedes(a, b) and supersedes(b, a))
    assert same_branch(a, a) and not supersedes(a, a)


@settings(max_examples=300, deadline=None)
@given(known=st.lists(lines(), min_size=1, max_size=4))
def test_the_main_line_is_on_the_youngest_branch_however_far_older_ones_go(known: list[Line]) -> None:
    main = main_line(known)
    if main is None:
        assert any(
            not supersedes(a, b) and not supersedes(b, a) and not same_branch(a, b) for a in known for b in known
        )
        return
    assert not any(supersedes(other, main) for other in known)
    assert all(same_branch(main, other) or supersedes(main, other) for other in known)
    assert all(other.end.offset <= main.end.offset for other in known if same_branch(main, other))


@settings(max_examples=200, deadline=None)
@given(fork=st.integers(10, 20), young=st.integers(0, 20), old=st.integers(1, 40))
def test_who_is_on_an_older_branch_with_a_higher_position_is_never_promoted(fork: int, young: int, old: int) -> None:
    b = standby("b", fork + old)
    c = standby("c", fork + young, branches=forked(("2", fork)))
    plan = planned(group(gone(), b, c))
    assert plan.candidate == "c"
    assert any(each.subject == "b" and "parted" in each.text for each in plan.findings)
    assert planned(group(gone(), b, c), to="b").candidate is None
    assert (
        plan.loss.kind == "unknown"
    )  # what b has may have been acknowledged, and nobody recorded the primary's branch


def test_who_has_not_followed_yet_is_behind_and_not_parted() -> None:
    b = standby("b", 8)
    c = standby("c", 25, branches=forked(("2", 20)))
    plan = planned(group(gone(), b, c))
    assert plan.candidate == "c" and not any("parted" in each.text for each in plan.findings)


def test_two_that_were_promoted_apart_are_a_question_for_a_person() -> None:
    """Both are on a timeline 2, of the same name."""
    b = standby("b", 30, branches=forked(("2", 10)))
    c = standby("c", 35, branches=forked(("2", 20)))
    plan = planned(group(gone(), b, c))
    assert plan.candidate is None and not plan.steps
    assert any("nobody can tell which one is the primary's" in each.text for each in plan.blockers)


def test_where_branches_have_parted_the_record_of_the_primary_says_which_is_its_own() -> None:
    ours, theirs = forked(("2", 10)), forked(("2", 20))
    b, c = standby("b", 30, branches=ours), standby("c", 35, branches=theirs)
    seen = sample(28, sync=sync_of("b", branch="2", since=12), members=(primary("a", 28, branches=ours),))
    plan = planned(group(gone(), b, c), recorded=seen)
    assert plan.candidate == "b" and plan.loss.kind == "nothing", str(plan)
    assert any(each.subject == "c" and "parted" in each.text for each in plan.findings)


def test_a_record_of_an_older_branch_proves_nothing_about_a_younger_one() -> None:
    young = forked(("2", 20))
    facts = group(gone(), standby("b", 30, branches=young), standby("c", 30, branches=young))
    plan = planned(facts, recorded=sample(18, sync=sync_of("b", "c")))
    assert plan.loss.kind == "unknown"
    assert any("it says nothing about what was acknowledged there" in each.text for each in plan.findings)


def test_what_the_primary_wrote_on_a_branch_that_was_left_makes_the_loss_unknown() -> None:
    young = forked(("2", 20))
    facts = group(gone(), standby("b", 30, branches=young, complete=4))
    before = planned(facts, recorded=sample(20))
    assert before.loss.kind == "bounded"
    after = planned(facts, recorded=sample(25))
    assert after.loss.kind == "unknown"
    assert any("a as it was recorded" in each for each in after.loss.evidence)


def test_a_member_of_another_cluster_is_not_compared() -> None:
    stranger = evolve(standby("c", 900), lineage="8")
    plan = planned(group(gone(), standby("b", 10), stranger), recorded=sample(5))
    assert plan.candidate == "b"
    assert any(each.subject == "c" and "another system" in each.text for each in plan.findings)
