"""Kinds of audit events. Logs, metrics, timelines and notifications derive from these; names are `noun.past_verb`."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """What happened. The comment of each names the keys of its data."""

    # in an incident's chain
    INCIDENT_OPENED = "incident.opened"  # rule, target, severity, fingerprint, labels, summary, also_matched, note
    INCIDENT_JOINED = "incident.joined"  # fingerprint, labels
    INCIDENT_REOPENED = "incident.reopened"  # fingerprint, relapses, remedies
    INCIDENT_RESOLVED = "incident.resolved"  # fingerprint, paged
    INCIDENT_ESCALATED = "incident.escalated"  # run, reason, policy
    INCIDENT_ACKNOWLEDGED = "incident.acknowledged"  # owner, rule, seconds (since the page went out; null: before, or again)
    INCIDENT_HANDED_OVER = "incident.handed_over"  # run, rule, to, reason
    INCIDENT_TAKEN = "incident.taken"  # owner, why, until, rule, covers (canonical ids that automation does not touch)
    INCIDENT_RELEASED = "incident.released"  # owner, reason
    EPISODE_CLOSED = "episode.closed"  # fingerprint (others of the incident are still open)
    EPISODE_EXPIRED = "episode.expired"  # fingerprint, reason, peers, absent, confirmed_at (no Alertmanager knows its alert any more)
    EPISODE_DOUBTED = "episode.doubted"  # fingerprint, reason (said to be over while a watchdog is lost, which proves nothing)
    EPISODE_BELIEVED = "episode.believed"  # fingerprint, ends_at (the watchdog is back, and nobody told of its alert again)
    ALERT_RECOVERED = "alert.recovered"  # fingerprint, source (missed|truncated|listed), peer, receiver, starts_at, updated_at, doubted_end
    RUN_CREATED = "run.created"  # run, rule, rule_hash, chain, dry_run
    RUN_ENTERED = "run.entered"  # run, rule, state, was, reason
    GUARD_DENIED = "guard.denied"  # run, rule, guard, verdict (wait | deny), reason, until
    REMEDY_CHOSEN = "remedy.chosen"  # run, remedy (null: none), checks, conditions, reason
    PLAN_MADE = "plan.made"  # run, remedy, hash, steps, authority, reasons, approvers
    APPROVAL_REQUESTED = "approval.requested"  # run, approval, hash, groups, quorum, expires_at, reason
    APPROVAL_DECIDED = "approval.decided"  # run, approval, hash, decision (approve | deny), comment, state, left_out
    APPROVAL_CLOSED = "approval.closed"  # run, approval, state (void | expired), reason
    ACTION_INTENDED = "action.intended"  # run, rule, step, action, undo
    ACTION_APPLIED = "action.applied"  # run, rule, step, action, undo, message, touched, seconds
    ACTION_FAILED = "action.failed"  # run, rule, step, action, undo, message, seconds
    ACTION_UNKNOWN = "action.unknown"  # run, rule, step, action, undo, message
    SILENCE_MADE = "silence.made"  # run, rule, silence, ends_at (its first, short end)
    SILENCE_ENDED = "silence.ended"  # run, rule, silence, reason
    SILENCE_FAILED = "silence.failed"  # run, rule, doing (make | prolong | end), silence, error
    VERIFICATION_READ = "verification.read"  # run, health, message (when it changed)
    SIGNAL_RECEIVED = "signal.received"  # run, signal, comment
    MESSAGE_DELIVERED = "message.delivered"  # key, receivers, message (what kind it is), level
    MESSAGE_POSTPONED = "message.postponed"  # key, level, until, reason
    MESSAGE_FAILED = "message.failed"  # key, error, attempts
    MESSAGE_FOLDED = "message.folded"  # key, storm (its digest tells instead; a page goes out when it is over)

    # in the system chain
    DAEMON_STARTED = "daemon.started"  # version, dry_run, rules, rules_hash
    DAEMON_STOPPED = "daemon.stopped"
    SESSION_BEGAN = "session.began"  # address (somebody signed in to the web interface; the actor says who)
    SESSION_ENDED = "session.ended"  # address
    RULES_RELOADED = "rules.reloaded"  # rules, rules_hash, restart (settings that wait for one)
    RULES_REFUSED = "rules.refused"  # problems
    ALERTS_TRUNCATED = "alerts.truncated"  # receiver, group, truncated, recovered, error
    RECONCILIATION_DOUBTED = "reconciliation.doubted"  # doubt, reason, episodes (none of these is closed until it is over)
    PAUSE_SET = "pause.set"  # scope, why
    PAUSE_LIFTED = "pause.lifted"  # scope, why
    TARGET_TAKEN = "target.taken"  # owner, why, until, target
    TARGET_RELEASED = "target.released"  # owner, reason, target
    FREEZE_SET = "freeze.set"  # scope, why, until (null: until somebody thaws it)
    FREEZE_LIFTED = "freeze.lifted"  # scope, why
    FREEZE_DOUBTED = "freeze.doubted"  # freeze, reason (its calendar can't be read: a person is asked)
    STORM_TRIPPED = "storm.tripped"  # storm, reason
    STORM_ENDED = "storm.ended"  # storm, reason, lasted
    STORM_SETTLED = "storm.settled"  # storm, incidents, paged (all that it held back was looked at again; so many are open, and paged now)
    WATCHDOG_LOST = "watchdog.lost"  # scope, reason (nothing acts by itself until it is heard again)
    WATCHDOG_HEARD = "watchdog.heard"  # scope, away (heard again, after so long)
    RULE_DEMOTED = "rule.demoted"  # scope, rule, to, why, run (the failure that cost it the trust; none when a person demoted it)
    RULE_PROMOTED = "rule.promoted"  # scope, rule, to, why, forced, lacks (what its record lacks, when forced)
    REMEDY_STOPPED = "remedy.stopped"  # scope, rule, remedy, why, run
    CLOCK_SET_BACK = "clock.set_back"  # seconds, now, runs (what waits waits no longer for it)
    STORE_RESTORED = "store.restored"  # era, was (somebody said that the store was restored: keys of calls and pages are new from then on)
    AUDIT_CHECKPOINTED = "audit.checkpointed"  # chains
    AUDIT_ARCHIVED = "audit.archived"  # chains, file, sha256
