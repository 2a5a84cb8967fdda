"""From rule files to rules: what a rule means, and every fault named at its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from remediator.action import FactType
from remediator.errors import InvalidFiles
from remediator.expressions import Facts
from remediator.model import Authority, Risk
from remediator.rules.compile import PackSource, RuleSet, compile_rule, compile_ruleset
from remediator.rules.model import ApprovalSpec, Arm, Budget, BudgetScope, GuardSpec, OnFailure, VerifySpec

Load = Callable[..., RuleSet]
Find = Callable[..., list[str]]

WHOLE = """\
rules:
  - name: site-down
    description: The site answers nobody.
    runbook: https://wiki.example.com/site-down
    match: ['alertname = "SiteDown"', '{severity=~"critical|high"}']
    severity: sev1
    for: 1m
    target: deployment/${labels.namespace}/${labels.deployment}
    mode: auto
    priority: 10
    alive: up{job="api"}
    checks:
      backend:
        kubernetes.rollout: {cluster: production, namespace: "${labels.namespace}", deployment: api}
        timeout: 5s
    remedies:
      - name: roll back
        when: checks.backend.age < duration("30m") && checks.backend.ready < checks.backend.desired
        steps:
          - kubernetes.rollout_undo: {cluster: production, namespace: "${labels.namespace}", deployment: api}
          - kubernetes.scale: {cluster: production, deployment: api, replicas: "${checks.backend.desired + 2}"}
            when: checks.backend.desired < 3
            timeout: 1h
        verify: {within: 10m, hold: 2m, every: 10s, until: alert.resolved && checks.backend.ready > 0}
        approval: {from: [sre, dba], quorum: 2, expires: 1h}
        on_unknown: next
      - name: more replicas
        steps: [{kubernetes.scale: {cluster: production, deployment: api, replicas: 5}}]
        on_failure: undo
    otherwise: escalate
    guards: {cooldown: 1h, budget: [1 per 1h, 3 per 1d per target], max_wait: 5m, max_age: 2h, max_targets: 3, max_percent: 50,
             allow_shrink: true, plan_expires: 1m, relapse_window: 12h, max_failing: 2, failing_within: 30m, max_relapses: 1, max_chain: 2}
    arm: {min_runs: 20, min_success: 0.9}
    escalation: production
"""


def small(remedy: str = "", checks: str = "", **keys: str) -> str:
    """Return a file with one small rule; `remedy` is one remedy's keys beyond its name, indented by 8."""
    lines = ["rules:", "  - name: r", "    match: ['a = \"b\"']", *(f"    {key}: {value}" for key, value in keys.items())]
    if checks:
        lines += ["    checks:", *(f"      {line}" for line in checks.splitlines())]
    if remedy:
        lines += ["    remedies:", "      - name: x", *(f"        {line}" for line in remedy.splitlines())]
    return "\n".join(lines) + "\n"


SCALE = "steps: [{kubernetes.scale: {cluster: c, deployment: d, replicas: 3}}]"
BACKEND = "backend: {kubernetes.rollout: {cluster: c, namespace: n, deployment: d}}"


# --- what a rule means -----------------------------------------------------------------------------------------------


def test_whole_rule(load: Load) -> None:
    """Every key of the file format reaches the rule."""
    rule = load(WHOLE).rule("site-down")
    assert rule is not None
    assert rule.description == "The site answers nobody."
    assert rule.runbook == "https://wiki.example.com/site-down"
    assert [str(one) for one in rule.match] == ['alertname = "SiteDown"', 'severity =~ "critical|high"']
    assert (rule.severity, rule.mode, rule.enabled, rule.priority, rule.escalation) == ("sev1", Authority.AUTO, True, 10, "production")
    assert rule.target is not None
    assert rule.target.render(Facts({"labels": {"namespace": "shop", "deployment": "api"}})) == "deployment/shop/api"
    assert rule.alive == 'up{job="api"}'
    assert (rule.pack, rule.file, rule.line) == ("shop", "rules.yaml", 2)
    (check,) = rule.checks
    assert (check.id, check.check, check.timeout) == ("backend", "kubernetes.rollout", timedelta(seconds=5))
    assert rule.guards == GuardSpec(
        firing_for=timedelta(minutes=1),
        max_age=timedelta(hours=2),
        cooldown=timedelta(hours=1),
        budgets=(Budget(1, timedelta(hours=1)), Budget(3, timedelta(days=1), BudgetScope.TARGET)),
        max_wait=timedelta(minutes=5),
        max_targets=3,
        max_percent=50,
        allow_shrink=True,
        plan_expires=timedelta(minutes=1),
        relapse_window=timedelta(hours=12),
        arm=Arm(20, 0.9, timedelta(days=30)),
        max_failing=2,
        failing_within=timedelta(minutes=30),
        max_relapses=1,
        max_chain=2,
    )


def test_whole_remedy(load: Load) -> None:
    """Conditions, steps, verification, approval and failure handling reach the remedy; its risk is that of its riskiest step."""
    rule = load(WHOLE).rule("site-down")
    assert rule is not None
    first, second = rule.remedies
    assert first.when is not None
    assert first.when.names == ("checks.backend.age", "checks.backend.desired", "checks.backend.ready")
    assert [(step.number, step.action, step.timeout) for step in first.steps] == [
        (1, "kubernetes.rollout_undo", timedelta(minutes=2)),
        (2, "kubernetes.scale", timedelta(hours=1)),
    ]
    assert first.steps[1].when is not None
    assert first.steps[1].params.render(Facts({"checks.backend.desired": 2})) == {
        "cluster": "production",
        "deployment": "api",
        "replicas": 4,
    }
    assert first.verify.until is not None
    assert first.verify.every == timedelta(seconds=10)
    assert first.approval == ApprovalSpec(frozenset({"sre", "dba"}), 2, timedelta(hours=1))
    assert first.unknown_is_next
    assert (first.risk, second.risk) == (Risk.MEDIUM, Risk.LOW)
    assert (first.on_failure, second.on_failure) == (OnFailure.ESCALATE, OnFailure.UNDO)


def test_defaults(load: Load) -> None:
    """A rule with only a name and a matcher is careful: it asks before acting, and with no remedies it escalates."""
    rule = load(small()).rule("r")
    assert rule is not None
    assert (rule.mode, rule.enabled, rule.priority, rule.severity, rule.escalation) == (Authority.APPROVE, True, 100, "sev3", "default")
    assert rule.guards == GuardSpec()
    assert rule.target is None
    assert rule.remedies == ()
    remedy = load(small(SCALE)).rules[0].remedies[0]
    assert remedy.verify == VerifySpec(timedelta(minutes=10), timedelta(minutes=1), timedelta(seconds=5), None)
    assert (remedy.approval, remedy.on_failure, remedy.unknown_is_next) == (None, OnFailure.ESCALATE, False)


def test_handover(load: Load) -> None:
    """A remedy may hand the incident to another rule instead of taking steps."""
    files = {"a.yaml": small("handover: s"), "b.yaml": small().replace("name: r", "name: s")}
    rule = load(files).rule("r")
    assert rule is not None
    assert rule.remedies[0].handover == "s"
    assert rule.remedies[0].steps == ()


def test_ruleset_finds_rules(load: Load) -> None:
    """Rules are found by name and by an alert's labels."""
    rules = load(WHOLE)
    assert [rule.name for rule in rules.matching({"alertname": "SiteDown", "severity": "high"})] == ["site-down"]
    assert rules.matching({"alertname": "SiteDown", "severity": "low"}) == []
    assert rules.rule("nothing") is None


def test_no_packs_is_no_rules() -> None:
    """A daemon without packs has an empty rule set, and a hash for it."""
    rules = compile_ruleset([], _Nothing())
    assert rules.rules == ()
    assert len(rules.hash) == 64


class _Nothing:
    """A catalogue of nothing."""

    def action(self, name: str) -> None:
        return None

    def check(self, name: str) -> None:
        return None

    def action_names(self) -> tuple[str, ...]:
        return ()

    def check_names(self) -> tuple[str, ...]:
        return ()


# --- hashes and compiling again --------------------------------------------------------------------------------------


def test_rule_compiles_again_from_its_source(load: Load, catalogue: Any) -> None:
    """After a restart a frozen rule is compiled from its row: equal in everything, hash included."""
    pack = "vars: {wait: {type: duration, default: 30m}, n: 3}\ndefaults: {severity: sev2}\n"
    text = small("when: checks.backend.age < vars.wait\n" + SCALE.replace("3", '"${vars.n}"'), BACKEND)
    rule = load({"pack.yaml": pack, "r.yaml": text}).rules[0]
    again = compile_rule(json.loads(json.dumps(rule.source)), catalogue)
    assert again == rule
    assert again.hash == rule.hash
    assert again.remedies[0].hash == rule.remedies[0].hash
    assert again.vars == {"wait": timedelta(minutes=30), "n": 3}


def test_rule_that_no_longer_fits_says_so(load: Load) -> None:
    """When an upgrade took an action away, compiling the stored rule names it."""
    rule = load(small(SCALE)).rules[0]
    with pytest.raises(InvalidFiles, match=r"rules.yaml:2:1: there is no action 'kubernetes.scale'"):
        compile_rule(rule.source, _Nothing())


def test_hashes_follow_the_meaning(load: Load) -> None:
    """What a rule says changes its hash; where it stands doesn't."""
    plain = load(small(SCALE)).rules[0]
    assert load({"other.yaml": "\n\n" + small(SCALE)}).rules[0].hash == plain.hash
    assert load(small(SCALE, priority="5")).rules[0].hash != plain.hash
    assert load(small(SCALE, priority="5")).rules[0].remedies[0].hash == plain.remedies[0].hash
    assert load(small(SCALE.replace("3", "4"))).rules[0].remedies[0].hash != plain.remedies[0].hash


def test_remedy_hash_covers_its_checks_and_variables(load: Load) -> None:
    """Another check under the same condition, or another value of a variable it uses, is another remedy; an unused one is not."""
    text = small("when: checks.backend.ready < vars.least\n" + SCALE, BACKEND + '\nother: {prometheus.query: {query: "up"}}')

    def remedy(**values: Any) -> str:
        found = load({"pack.yaml": "vars: {least: 1, unused: 1}", "r.yaml": values.pop("text", text)}, vars=values)
        return found.rules[0].remedies[0].hash

    assert remedy() == remedy(unused=2)
    assert remedy() != remedy(least=2)
    assert remedy() != remedy(text=text.replace("namespace: n", "namespace: m"))
    assert remedy() == remedy(text=text.replace('query: "up"', 'query: "down"'))


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (small(severty="sev1"), ["4:5: unknown key 'severty'; did you mean 'severity'?"]),
        (small(mode="autoo"), ["4:11: mode: must be 'observe', 'approve' or 'auto', found 'autoo'"]),
        (small(priority="-1"), ["4:15: priority: must be greater than or equal to 0, found -1"]),
        (small(**{"for": "5"}), ["4:10: for: 5 is not a duration; write it like 90s, 10m, 1h30m or 7d"]),
        (small(**{"for": "5x"}), ["4:10: for: '5x' is not a duration; write it like 90s, 10m, 1h30m or 7d"]),
        (small(otherwise="ignore"), ["4:16: otherwise: must be 'escalate', found 'ignore'"]),
        (small(guards="{max_percent: 101}"), ["4:27: guards.max_percent: must be less than or equal to 100, found 101"]),
        (small(guards="{cooldwn: 1m}"), ["4:14: unknown key 'cooldwn'; did you mean 'cooldown'?"]),
        (small(guards="{budget: [2 in 1h]}"), ["4:23: budget '2 in 1h' must read like `2 per 1h` or `5 per 1d per target`"]),
        (small(guards="{budget: [2 per 1x]}"), ["4:23: budget: '1x' is not a duration; write it like 90s, 10m, 1h30m or 7d"]),
        (small(guards="{budget: [2 per 0]}"), ["4:23: budget '2 per 0' must read like `2 per 1h` or `5 per 1d per target`"]),
        (small(guards="{max_age: 0s}"), ["4:23: guards.max_age: must be greater than 0s, found '0s'"]),
        ("rules:\n  - name: r\n", ["2:5: key 'match' is missing"]),
        ("rules:\n  - match: ['a=b']\n", ["2:5: key 'name' is missing"]),
        ("rule: []\n", ["1:1: key 'rules' is missing", "1:1: unknown key 'rule'; did you mean 'rules'?"]),
        ("rules: [5]\n", ["1:9: rules.0: must be a mapping, found 5"]),
        ("rules: {}\n", ["1:8: rules: must be a list, found a mapping"]),
        ("- a\n", ["1:1: must be a mapping, found a list"]),
        (small().replace("name: r", "name: a b"), ["2:11: rule name 'a b': write letters, digits and . _ - only, at most 100"]),
        (small().replace("name: r", "name: no"), []),
        (small().replace("name: r", "name: 5"), ["2:11: name: must be text, found 5"]),
        (small().replace("'a = \"b\"'", ""), ["3:12: match: must have at least 1 item, not 0"]),
        (small().replace("'a = \"b\"'", "'a =~ \"(\"'"), ["3:19: '(' is not a regular expression of RE2: missing ): ("]),
        (small().replace("'a = \"b\"'", "'a ='"), ["3:17: it ends where a value must follow"]),
        (small(target="x-${labels.a"), ["4:15: this ${ is never closed; write $${ for a literal one"]),
        (small(target="x-${vars.a}"), ["4:17: there is no name 'vars.a'"]),
        (small(target="${checks.a.b}"), ["4:15: there is no name 'checks.a.b'"]),
        (small(target="${labels}"), ["4:13: target: an expression of type map(string, string) is no name; write string(…)"]),
        (small(alive='up{a="${labels.a}"}'), ["4:20: there is no name 'labels.a'"]),
    ],
)
def test_faults_of_a_rule(load: Load, problems: Find, text: str, expected: list[str]) -> None:
    """Each fault of a rule's own keys stands at its place, with what was found and what to write."""
    if not expected:
        assert len(load(text).rules) == 1
        return
    assert problems(text) == [f"rules.yaml:{one}" for one in expected]


@pytest.mark.parametrize("matcher", ['a=~".*"', "{}", 'a!="b"', 'a=""', 'a!~"b"'])
def test_s03_match_never_takes_every_alert(problems: Find, matcher: str) -> None:
    """A rule that an alert without any labels would match is a mistake: empty is not everything."""
    text = small().replace("'a = \"b\"'", f"'{matcher}'")
    assert problems(text) == ["rules.yaml:3:12: match would take every alert; name at least one label that must be there"]


@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        ("Bad: {}", "5:7: check 'Bad': write a lower-case name of letters, digits and _, that is no word of CEL"),
        ("in: {}", "5:7: check 'in': write a lower-case name of letters, digits and _, that is no word of CEL"),
        ("a: {}", "5:10: no check is named; write {kubernetes.rollout: {…}}"),
        ("a: {timeout: 5s}", "5:10: no check is named; write {kubernetes.rollout: {…}}"),
        ("a: {kubernetes.rolout: {}}", "5:11: there is no check 'kubernetes.rolout'; did you mean 'kubernetes.rollout'?"),
        ("a: {kubernetes.rollout: 5}", "5:31: the parameters of kubernetes.rollout must be a mapping, not a number"),
        ('a: {prometheus.query: {query: "up"}, b.c: {}}', "5:44: a second check 'b.c'; write one in each entry"),
        ('a: {prometheus.query: {query: "up"}, timout: 5s}', "5:44: unknown key 'timout'; did you mean 'timeout'?"),
        ('a: {prometheus.query: {query: "up"}, timeout: 9h}', "5:53: timeout must be more than 0 and at most 5m"),
        ('a: {prometheus.query: {query: "up"}, timeout: x}', "5:53: timeout: 'x' is not a duration; write it like 90s, 10m, 1h30m or 7d"),
        ("a: {prometheus.query: {}}", "5:29: key 'query' is missing"),
        ("a: {prometheus.query: }", "5:29: key 'query' is missing"),
        ('a: {prometheus.query: {query: "up", arg: {}}}', "5:43: unknown key 'arg'; did you mean 'args'?"),
        ('a: {prometheus.query: {query: "up", args: {x: "${checks.a.value}"}}}', "5:56: there is no name 'checks.a.value'"),
        (
            "a: {kubernetes.rollout: {cluster: c, namespace: N, deployment: d}}",
            "5:55: namespace: must match pattern '^[a-z0-9-]+$', found 'N'",
        ),
    ],
)
def test_faults_of_checks(problems: Find, checks: str, expected: str) -> None:
    """Checks are held against the catalogue and their parameters against their models."""
    assert problems(small(checks=checks)) == [f"rules.yaml:{expected}"]


def step(params: str, action: str = "kubernetes.scale") -> str:
    """Return a remedy with one step; the parameters begin in line 8, column 30 (for `kubernetes.scale`)."""
    return small(f"steps:\n  - {action}: {params}", BACKEND)


@pytest.mark.parametrize(
    ("remedy", "expected"),
    [
        ("when: vars.x\n" + SCALE, ["8:15: there is no name 'vars.x'"]),
        ("when: checks.backend.ready\n" + SCALE, ["8:15: it must be of type bool and is of type int"]),
        ("when: checks.backend.agee > 1\n" + SCALE, ["8:15: there is no name 'checks.backend.agee'; did you mean 'checks.backend.age'?"]),
        ("when: alert.resolved\n" + SCALE, ["8:15: alert.resolved is computed during verification; it can only be used in verify.until"]),
        ("when: 'true && checks.nope.x'\n" + SCALE, ["8:24: there is no name 'checks.nope.x'"]),
        ("when: true\n" + SCALE, ["8:15: remedies.0.when: must be text, found true"]),
        ("steps: []", ["7:9: a remedy needs steps, or handover: RULE"]),
        ("on_failure: escalate", ["7:9: a remedy needs steps, or handover: RULE"]),
        (
            "handover: r2\n" + SCALE,
            [
                "8:19: there is no rule 'r2' to hand over to; did you mean 'r'?",
                "9:9: a remedy that hands over has no steps; the other rule decides",
            ],
        ),
        ("on_failure: retry\n" + SCALE, ["8:21: remedies.0.on_failure: must be 'escalate', 'undo' or 'next', found 'retry'"]),
        ("approval: {from: sre}\n" + SCALE, ["8:26: remedies.0.approval.from: must be a list, found 'sre'"]),
        ("approval: {quorum: 0}\n" + SCALE, ["8:28: remedies.0.approval.quorum: must be greater than or equal to 1, found 0"]),
        ("verify: {until: checks.backend.ready}\n" + SCALE, ["8:25: it must be of type bool and is of type int"]),
        ("verify: {every: 1h}\n" + SCALE, ["8:17: every (1h) is longer than within (10m)"]),
        ("steps: [{kubernetes.scal: {}}]", ["8:18: there is no action 'kubernetes.scal'; did you mean 'kubernetes.scale'?"]),
        ("steps: [{when: 'true'}]", ["8:17: no action is named; write {kubernetes.rollout_undo: {…}}"]),
        ("steps: [5]", ["8:17: remedies.0.steps.0: must be a mapping, found 5"]),
    ],
)
def test_faults_of_remedies(problems: Find, remedy: str, expected: list[str]) -> None:
    """Conditions are typed by the checks' declared facts; steps are held against the catalogue."""
    assert problems(small(remedy, BACKEND)) == [f"rules.yaml:{one}" for one in expected]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ("{cluster: c, deployment: d}", ["9:31: key 'replicas' is missing"]),
        ("{cluster: c, deployment: d, replicas: 0}", ["9:69: replicas: must be greater than or equal to 1, found 0"]),
        (
            "{cluster: c, deployment: d, replicas: many}",
            ["9:69: replicas: must be a valid integer, unable to parse string as an integer, found 'many'"],
        ),
        ("{cluster: c, deployment: d, replica: 1, replicas: 1}", ["9:59: unknown key 'replica'; did you mean 'replicas'?"]),
        ("{cluster: c, deployment: d, replicas: 1, wait: 5}", ["9:78: wait: 5 is not a duration; write it like 90s, 10m, 1h30m or 7d"]),
        ("{cluster: c, deployment: d, replicas: 1, strategy: slo}", ["9:82: strategy: must be 'fast' or 'slow', found 'slo'"]),
        ("{cluster: c, deployment: d, replicas: 1, labels: {a: 1}}", ["9:84: labels.a: must be text, found 1"]),
        (
            '{cluster: c, deployment: d, replicas: "${checks.backend.age}"}',
            ["9:69: replicas: an expression of type duration does not fit: it must be a valid integer"],
        ),
        (
            '{cluster: c, deployment: d, replicas: "${labels.n}"}',
            ["9:69: replicas: an expression of type string does not fit: it must be a valid integer"],
        ),
        ('{cluster: c, deployment: d, replicas: "n${vars.x}"}', ["9:73: there is no name 'vars.x'"]),
        (
            '{cluster: c, deployment: d, replicas: "1${labels.n}"}',
            ["9:69: replicas: an expression of type string does not fit: it must be a valid integer"],
        ),
        (
            '{cluster: c, deployment: d, replicas: 1, wait: "${checks.backend.ready}"}',
            ["9:78: wait: an expression of type int does not fit"],
        ),
        (
            '{cluster: c, deployment: d, replicas: 1, force: "${checks.backend.ready}"}',
            ["9:79: force: an expression of type int does not fit: it must be a valid boolean"],
        ),
        (
            '{cluster: c, deployment: d, replicas: 1, names: ["${checks.backend.ready}"]}',
            ["9:80: names.0: an expression of type int does not fit: it must be text"],
        ),
        (
            '{cluster: c, deployment: d, replicas: "${checks.backend.rows[0].n}"}',
            ["9:69: its type is only known when it is evaluated; convert it, for instance ${string(x)} or ${int(x)}"],
        ),
        ('{cluster: c, deployment: "${labels.d}", replicas: 0}', ["9:81: replicas: must be greater than or equal to 1, found 0"]),
        ('{cluster: c, deployment: d, replicas: 1, labels: {"${labels.a}": b}}', ["9:81: a key can't hold ${…}: '${labels.a}'"]),
        (
            '{cluster: c, deployment: "${labels.a", replicas: "${1 +}"}',
            ["9:57: this ${ is never closed; write $${ for a literal one", "9:86: syntax error: it ends too early"],
        ),
    ],
)
def test_faults_of_parameters(problems: Find, params: str, expected: list[str]) -> None:
    """Constants are validated field by field, and an interpolation of a type that can't fit is refused when rules load."""
    assert problems(step(params)) == [f"rules.yaml:{one}" for one in expected]


@pytest.mark.parametrize(
    "params",
    [
        '{cluster: c, deployment: d, replicas: "${checks.backend.ready}"}',
        '{cluster: c, deployment: d, replicas: "${int(labels.n)}"}',
        '{cluster: "${labels.c}", deployment: "${labels.a}-${checks.backend.ready}", replicas: 1}',
        '{cluster: c, deployment: d, replicas: 1, wait: "${checks.backend.age}"}',
        '{cluster: c, deployment: d, replicas: 1, wait: "${labels.wait}"}',
        '{cluster: c, deployment: d, replicas: 1, strategy: "${labels.s}"}',
        '{cluster: c, deployment: d, replicas: 1, factor: "${checks.backend.latency}"}',
        '{cluster: c, deployment: d, replicas: 1, factor: "${checks.backend.ready}"}',
        '{cluster: c, deployment: d, replicas: 1, labels: "${labels}", names: "${checks.backend.reasons}"}',
        '{cluster: c, deployment: d, replicas: 1, labels: {a: "$${x}"}, names: ["${labels.a}"], force: "${1 < 2}"}',
    ],
)
def test_interpolations_that_fit(load: Load, params: str) -> None:
    """Whatever could fit is taken; whether the value does shows when it is known."""
    assert len(load(step(params)).rules) == 1


def test_s25_code_takes_no_interpolation(problems: Find) -> None:
    """SQL, PromQL and the like are constants; values go through args."""
    message = "sql is code and takes no ${…}; pass the value through args (a literal ${ is written $${)"
    assert problems(step('{sql: "select ${labels.x}"}', "postgres.execute")) == [f"rules.yaml:9:37: {message}"]
    found = problems(small(checks='a: {prometheus.query: {query: "up{a=\\"${labels.x}\\"}"}}'))
    assert found == ["rules.yaml:5:37: query is code and takes no ${…}; pass the value through args (a literal ${ is written $${)"]


def test_code_with_args(load: Load) -> None:
    """The way that is allowed, and a literal `${` in code."""
    text = step('{sql: "select $1, \'$${x}\'", args: {"1": "${labels.x}", "2": "${checks.backend.ready}"}}', "postgres.execute")
    params = load(text).rules[0].remedies[0].steps[0].params
    rendered = params.render(Facts({"labels": {"x": "'; drop"}, "checks.backend.ready": 2}))
    assert rendered == {"sql": "select $1, '${x}'", "args": {"1": "'; drop", "2": 2}}


def test_s04_evidence_never_enters_an_action(load: Load, problems: Find) -> None:
    """Raw text from outside may decide, but never becomes a parameter."""
    text = small('steps: [{notify.slack: {text: "${checks.backend.logs[0]}"}}]', BACKEND)
    message = "checks.backend.logs is evidence, raw text from outside: it may be looked at in conditions, but never goes into an action"
    assert problems(text) == [f"rules.yaml:8:32: {message}"]
    assert load(small('when: checks.backend.logs.exists(l, l.contains("x"))\n' + SCALE, BACKEND)).rules


def test_s02_unknown_never_leads_to_more_risk(load: Load, problems: Find) -> None:
    """`on_unknown: next` is refused when a later remedy carries more risk."""
    flush = "- {name: y, steps: [{redis.flush_db: {cluster: c, deployment: d, replicas: 3}}]}"
    text = small(SCALE + "\non_unknown: next") + f"      {flush}\n"
    message = "on_unknown: next would lead to 'y', whose risk is high, more than low here"
    assert problems(text) == [f"rules.yaml:7:21: {message}"]
    assert load(text.replace("on_unknown: next", "on_unknown: stop")).rules


@pytest.mark.parametrize(
    ("action", "params", "message"),
    [
        ("redis.flush_db", "{cluster: c, deployment: d, replicas: 3}", "on_failure: undo is not possible: redis.flush_db can't be undone"),
        (
            "kubernetes.rollout_undo",
            "{cluster: c, namespace: n, deployment: d}",
            "on_failure: undo would bring back what was seen unhealthy: kubernetes.rollout_undo is itself the way back",
        ),
    ],
)
def test_s20_undo_is_refused_where_it_makes_no_sense(problems: Find, action: str, params: str, message: str) -> None:
    """What can't be undone, or whose undo restores the fault, takes no `on_failure: undo`."""
    assert problems(small(f"steps: [{{{action}: {params}}}]\non_failure: undo")) == [f"rules.yaml:7:21: {message}"]


def test_messages_need_no_undo(load: Load) -> None:
    """A notification among the steps doesn't stand in the way of undoing the others."""
    text = small("steps: [{notify.slack: {text: a}}, {kubernetes.scale: {cluster: c, deployment: d, replicas: 3}}]\non_failure: undo")
    assert load(text).rules[0].remedies[0].on_failure is OnFailure.UNDO


def test_s19_within_must_leave_time_to_resolve(load: Load, problems: Find) -> None:
    """A deadline that no success could meet is an error: hold plus one evaluation."""
    text = small("verify: {within: 70s, hold: 1m}\n" + SCALE)
    assert problems(text) == ["rules.yaml:6:26: within (1m10s) is shorter than hold (1m) and one evaluation (15s): it could never succeed"]
    assert load(text, evaluation_interval=timedelta(seconds=10)).rules
    short = small("verify: {within: 1m}\n" + SCALE)
    assert problems(short) == ["rules.yaml:6:26: within (1m) is shorter than hold (1m) and one evaluation (15s): it could never succeed"]


def test_s19_within_must_outlast_keep_firing_for(load: Load, problems: Find) -> None:
    """An alert that stays for minutes once its cause is gone can't be seen resolved before; a condition without it can be met."""
    lasts = {"resolves_after": timedelta(minutes=5)}
    text = small("verify: {within: 6m, hold: 1m}\n" + SCALE)
    assert load(text).rules
    with pytest.raises(InvalidFiles, match=r"and one evaluation \(15s\) and how long an alert stays besides \(5m\): it could never"):
        load(text, **lasts)
    assert load(small("verify: {within: 6m, hold: 1m, until: 'true'}\n" + SCALE), **lasts).rules
    assert load(small("verify: {within: 6m15s, hold: 1m}\n" + SCALE), **lasts).rules


def test_rule_that_is_too_young_until_it_is_too_old_is_refused(problems: Find) -> None:
    """`for` must end before `max_age` does, or the rule could never act."""
    (problem,) = problems(small(SCALE, **{"for": "2h"}))
    assert "for (2h) must be shorter than guards.max_age (1h)" in problem


def test_s05_handovers_never_lead_in_a_circle(problems: Find) -> None:
    """Cycles of handovers are refused, to oneself too, and so are unknown rules."""
    rules = "rules:\n" + "".join(
        f"  - {{name: {name}, match: ['a = \"{name}\"'], remedies: [{{name: x, handover: {to}}}]}}\n"
        for name, to in (("one", "two"), ("two", "three"), ("three", "one"), ("self", "self"), ("lost", "tow"))
    )
    assert [one.partition(": ")[2] for one in problems(rules)] == [
        "handover leads in a circle: one → two → three → one",
        "handover leads in a circle: two → three → one → two",
        "handover leads in a circle: three → one → two → three",
        "handover leads in a circle: self → self",
        "there is no rule 'tow' to hand over to; did you mean 'two'?",
    ]


def test_duplicate_rule_names_over_all_packs(problems: Find, catalogue: Any) -> None:
    """Names are unique everywhere: a kill switch or a budget must mean one rule."""
    assert problems({"a.yaml": small(), "b.yaml": small()}) == ["b.yaml:2:11: a second rule 'r'; the first stands in a.yaml:2"]
    packs = [PackSource(name, {}, {"same/r.yaml": small().encode()}) for name in ("one", "two")]
    with pytest.raises(InvalidFiles) as caught:
        compile_ruleset(packs, catalogue)
    hint = "a pack that is used twice needs a variable in its rules' names"
    assert str(caught.value) == f"same/r.yaml:2:11: a second rule 'r'; the first stands in same/r.yaml:2; {hint}"


def test_duplicate_remedy_names(problems: Find) -> None:
    """Remedies of one rule have different names: a chain remembers them by name."""
    text = small(SCALE) + f"      - name: x\n        {SCALE}\n"
    assert problems(text) == ["rules.yaml:7:15: a second remedy 'x'; the first stands in line 5"]


def test_names_that_the_settings_know(load: Load, problems: Find) -> None:
    """Severities, escalation policies and connections must exist; the default severity too."""
    text = small(SCALE, severity="P0", escalation="prod")
    found = problems(text, severities=["P1", "P2"], escalations=["default", "production"], connections=["cc", "b"])
    assert found == [
        "rules.yaml:4:15: there is no severity 'P0'; there are P1, P2",
        "rules.yaml:5:17: there is no escalation policy 'prod'; there are default, production",
        "rules.yaml:8:46: there is no connection 'c'; did you mean 'cc'?",
    ]
    assert problems(small(), severities=["P1"]) == ["rules.yaml:2:5: there is no severity 'sev3'; there are P1"]
    assert load(text, severities=["P0"], escalations=["prod"], connections=["c"]).rules


def test_all_faults_of_all_files_at_once(problems: Find) -> None:
    """One pass names everything that is wrong, in every file, so that nobody mends faults one by one."""
    files: dict[str, str | bytes] = {
        "a.yaml": small(severty="x", mode="autoo"),
        "b.yaml": "rules:\n\t- a\n",
        "c.yaml": b"\xff",
        "d.yaml": small("when: vars.nope\n" + SCALE.replace("3", "0")).replace("name: r", "name: d"),
        "e.yaml": "a: &a 1\n",
        "pack.yaml": "vars: {1x: 2}\n",
    }
    assert problems(files) == [
        "a.yaml:4:5: unknown key 'severty'; did you mean 'severity'?",
        "a.yaml:5:11: mode: must be 'observe', 'approve' or 'auto', found 'autoo'",
        "b.yaml:2:1: a tab; indent with spaces",
        "c.yaml:1:1: byte 0xff is not UTF-8; save the file as UTF-8",
        "d.yaml:6:15: there is no name 'vars.nope'",
        "d.yaml:7:74: replicas: must be greater than or equal to 1, found 0",
        "e.yaml:1:4: anchor &a: anchors and aliases are not allowed; write the value out",
        "pack.yaml:1:8: variable '1x': a name has letters, digits and _ only, to be written as vars.1x",
    ]


def test_faulty_check_is_told_once(problems: Find) -> None:
    """What follows from a check that doesn't exist is not reported again at every condition."""
    text = small("when: checks.a.value > 1\n" + SCALE + "\nverify: {until: checks.a.value > 1}", "a: {prometheus.qery: {}}")
    assert problems(text) == ["rules.yaml:5:11: there is no check 'prometheus.qery'; did you mean 'prometheus.query'?"]


def test_limits_of_size(problems: Find) -> None:
    """Lists are limited; a file can't make the daemon do endless work."""
    many = "rules:\n" + "  - {name: r, match: [" + ", ".join(['"a=b"'] * 65) + "]}\n"
    assert problems(many) == ["rules.yaml:2:22: match: must have at most 64 items, not 65"]
    steps = "steps: [" + ", ".join(["{notify.slack: {text: a}}"] * 33) + "]"
    assert problems(small(steps)) == ["rules.yaml:6:16: remedies.0.steps: must have at most 32 items, not 33"]


# --- variables and defaults ------------------------------------------------------------------------------------------

PACK = """\
vars:
  namespace: shop
  wait: {type: duration, default: 30m, description: how long}
  limit: {type: int}
  names: {type: "list(string)", default: [a, b]}
defaults:
  severity: sev1
  mode: observe
  match: ['cluster = "prod"']
  guards: {cooldown: 2h, max_wait: 1m}
"""


def test_variables(load: Load) -> None:
    """Variables are typed, have defaults, and take the settings' values; they fill names and matchers when rules load."""
    text = small("when: checks.backend.age < vars.wait && vars.limit > 2\n" + SCALE, BACKEND, runbook="https://x/${vars.namespace}")
    text = text.replace("name: r", "name: r-${vars.namespace}").replace('"b"', '"${vars.namespace}"')
    rule = load({"pack.yaml": PACK, "r.yaml": text}, vars={"namespace": 'pay"ments', "limit": 3} | {"namespace": "pay"}).rules[0]
    assert rule.name == "r-pay"
    assert rule.runbook == "https://x/pay"
    assert [str(one) for one in rule.match] == ['cluster = "prod"', 'a = "pay"']
    assert rule.vars == {"namespace": "pay", "wait": timedelta(minutes=30), "limit": 3, "names": ["a", "b"]}


def test_variable_never_changes_a_matchers_form(load: Load) -> None:
    """A variable is put into the value that was parsed, not into the text."""
    text = small().replace('"b"', '"${vars.namespace}"')
    rule = load({"pack.yaml": "vars: {namespace: x}", "r.yaml": text}, vars={"namespace": 'x", b="y'}).rules[0]
    assert [(one.label, one.value) for one in rule.match] == [("a", 'x", b="y')]


def test_variable_in_a_regular_expression(load: Load, problems: Find) -> None:
    """A variable may be part of a regular expression, which is compiled once the variable is known."""
    text = small().replace("'a = \"b\"'", "'a =~ \"${vars.ns}-.+\"'")
    rule = load({"pack.yaml": "vars: {ns: shop}", "r.yaml": text}).rules[0]
    assert [rule.matches({"a": value}) for value in ("shop-a", "pay-a", "")] == [True, False, False]
    broken = problems({"pack.yaml": "vars: {ns: shop}", "r.yaml": text}, vars={"ns": "("})
    assert broken == ["r.yaml:3:14: '(-.+' is not a regular expression of RE2: missing ): (-.+"]


def test_defaults_of_a_pack(load: Load) -> None:
    """Defaults fill what a rule leaves out; guards merge key by key; matchers add up."""
    files = {"pack.yaml": PACK, "r.yaml": small(mode="auto", guards="{cooldown: 5m}")}
    rule = load(files, vars={"limit": 1}).rules[0]
    assert (rule.severity, rule.mode) == ("sev1", Authority.AUTO)
    assert (rule.guards.cooldown, rule.guards.max_wait) == (timedelta(minutes=5), timedelta(minutes=1))
    assert [one.label for one in rule.match] == ["cluster", "a"]


@pytest.mark.parametrize(
    ("pack", "values", "expected"),
    [
        ("vars: {a: {type: int}}", {}, "pack.yaml:1:8: variable 'a' has no default; set packs.shop.vars.a in the settings"),
        ("vars: {a: }", {}, "pack.yaml:1:11: a variable needs a default, or a type: {type: string}"),
        (
            "vars: {a: {type: integer}}",
            {},
            (
                "pack.yaml:1:18: type: must be 'string', 'int', 'double', 'bool', 'duration', 'list(string)' "
                "or 'map(string, string)', found 'integer'"
            ),
        ),
        ("vars: {a: {type: int, defalt: 3}}", {}, "pack.yaml:1:23: unknown key 'defalt'; did you mean 'default'?"),
        ("vars: {a: {type: int, default: x}}", {}, "pack.yaml:1:32: variable 'a' must be of type int: must be a valid integer, found 'x'"),
        ("vars: {a: 5}", {"a": "x"}, "settings: packs.shop.vars:1:1: variable 'a' must be of type int: must be a valid integer, found 'x'"),
        (
            "vars: {a: 5}",
            {"a": True},
            "settings: packs.shop.vars:1:1: variable 'a' must be of type int: must be a valid integer, found 'True'",
        ),
        (
            "vars: {wait: {type: duration, default: 5}}",
            {},
            "pack.yaml:1:40: variable 'wait' must be of type duration: 5 is not a duration; write it like 90s, 10m, 1h30m or 7d, found '5'",
        ),
        ("vars: {names: 5}", {"nams": 6}, "settings: packs.shop.vars:1:1: pack 'shop' has no variable 'nams'; did you mean 'names'?"),
        ("var: {}", {}, "pack.yaml:1:1: unknown key 'var'; did you mean 'vars'?"),
        ("defaults: {severty: a}", {}, "pack.yaml:1:12: unknown key 'severty'; did you mean 'severity'?"),
        (
            "defaults: {checks: {}}",
            {},
            (
                "pack.yaml:1:12: unknown key 'checks'; valid are alive, arm, enabled, escalation, for, guards, match, mode, "
                "priority, runbook, severity, silence, target"
            ),
        ),
        (
            "defaults: {priority: x}",
            {},
            "pack.yaml:1:22: defaults.priority: must be a valid integer, unable to parse string as an integer, found 'x'",
        ),
    ],
)
def test_faults_of_a_pack(problems: Find, pack: str, values: dict[str, Any], expected: str) -> None:
    """A pack's variables and defaults are checked like everything else."""
    assert expected in problems({"pack.yaml": pack, "r.yaml": small()}, vars=values)


def test_variables_in_promql_can_do_no_harm(load: Load, problems: Find) -> None:
    """`alive` takes variables, but only such as can't end the text they stand in."""
    files = {"pack.yaml": "vars: {ns: shop}", "r.yaml": small(alive='up{ns="${vars.ns}"}')}
    assert load(files).rules[0].alive == 'up{ns="shop"}'
    assert problems(files, vars={"ns": 'x"} or vector(1) #'}) == ["r.yaml:4:12: alive: vars.ns holds what can't stand in this text"]


def test_variable_types(load: Load) -> None:
    """A short declaration takes its type from the default."""
    pack = "vars: {a: x, b: 1, c: 1.5, d: true, e: [x], f: {k: v}}"
    rule = load({"pack.yaml": pack, "r.yaml": small()}, vars={"c": 2}).rules[0]
    assert rule.vars == {"a": "x", "b": 1, "c": 2.0, "d": True, "e": ["x"], "f": {"k": "v"}}
    assert rule.source["types"] == {
        "a": FactType.STRING,
        "b": FactType.INT,
        "c": FactType.DOUBLE,
        "d": FactType.BOOL,
        "e": FactType.STRINGS,
        "f": FactType.STRING_MAP,
    }
