"""What `kubernetes.exec` makes of outputs: `df` and `ps` as GNU, procps and busybox print them, numbers, lines, JSON.

The tables are those of real programs, shortened; some have what makes parsing hard.
"""

from __future__ import annotations

import json
import subprocess
from datetime import timedelta

import pytest

from actions.kubernetes.checks.disk_free import Mount, parse_df
from actions.kubernetes.checks.exec import ExecCheck
from actions.kubernetes.checks.limits import texts
from actions.kubernetes.checks.outputs import df_facts, json_facts, lines_facts, number_facts, ps_facts
from actions.kubernetes.checks.processes import parse_elapsed, parse_ps, program
from remediator.testing import assert_facts_match

KIB = 1024

# --- df --------------------------------------------------------------------------------------------------------------------

GNU = """\
Filesystem     1K-blocks      Used Available Use% Mounted on
overlay         61202244  41903616  16157324  73% /
tmpfs              65536         0     65536   0% /dev
/dev/sda1       10013884   7752964   1730644  82% /etc/hosts
tmpfs             524288        12    524276   1% /run/secrets/kubernetes.io/serviceaccount
"""
BUSYBOX_WRAPPED = """\
Filesystem           1K-blocks      Used Available Use% Mounted on
overlay              102626232  40212032  57158128  41% /
tmpfs                    65536         0     65536   0% /dev
/dev/mapper/ubuntu--vg-ubuntu--lv
                     102626232  40212032  57158128  41% /dev/termination-log
shm                      65536         0     65536   0% /dev/shm
"""
BUSYBOX_HUMAN = """\
Filesystem                Size      Used Available Use% Mounted on
/dev/mapper/cachedev_0
                         22.7T     20.1T      2.6T  89% /host/volume1
/dev/mapper/cachedev_1
                          1.7T    174.1G      1.6T  10% /host/volume2
/dev/md0                200.0M     56.9M    143.1M  28% /host/log
"""
POSIX = """\
Filesystem           1024-blocks    Used Available Capacity Mounted on
/dev/mapper/MyVolGroup-root         65478188  55206600   6899764  89% /code
"""
GNU_TYPES = """\
Filesystem     Type     1K-blocks      Used Available Use% Mounted on
/dev/sda1      ext4      10013884   7752964   1730644  82% /
none           overlay   10013884   7752964   1730644  82% /usr/lib/modules
/dev/loop0     ext4          4016        24      3708   1% /tmp/test_mnt/a1 a2
/dev/loop1     ext4          4016        24      3708   1% /tmp/test_mnt/b1  b2
"""
OLD_GNU_TYPES_WRAPPED = """\
Filesystem           Type  Size  Used Avail Use% Mounted on
/dev/mapper/vg--data-ephemeral0
                     ext4  1.7T   33G  1.6T   3% /mnt
"""
GNU_INODES = """\
Filesystem      Inodes   IUsed   IFree IUse% Mounted on
overlay        3907584 3907584       0  100% /
/proc                0       0       0     - /proc
"""
BYTES = """\
Filesystem       1B-blocks       Used   Available Use% Mounted on
overlay        62671097856 1000000000 61671097856   2% /
"""
ODD_UNIT = """\
Filesystem         512B-blocks      Used Available Use% Mounted on
/dev/sda3             17381728  17107080    274648  98% /
"""
SHARE_NAMES = """\
Filesystem                     1K-blocks    Used Available Use% Mounted on
//nas/Backups of 50% off       488245288 4880000 483365288   1% /mnt/sale 50% off /x
nfs.internal:/export/media lib 488245288  400000 487845288   1% /media
"""


def test_df_of_gnu() -> None:
    """Blocks become bytes, shares percent."""
    mounts = parse_df(GNU)
    assert mounts[0] == Mount("overlay", "/", 73.0, 61202244 * KIB, 41903616 * KIB, 16157324 * KIB)
    assert [mount.mount for mount in mounts] == ["/", "/dev", "/etc/hosts", "/run/secrets/kubernetes.io/serviceaccount"]


def test_df_of_busybox_puts_long_names_on_a_line_of_their_own() -> None:
    """The rest of the row follows on the next line."""
    assert parse_df(BUSYBOX_WRAPPED)[2] == Mount(
        "/dev/mapper/ubuntu--vg-ubuntu--lv", "/dev/termination-log", 41.0, 102626232 * KIB, 40212032 * KIB, 57158128 * KIB
    )
    assert len(parse_df(BUSYBOX_WRAPPED)) == 4


def test_df_rounded_for_people_has_no_bytes() -> None:
    """`-h` says 22.7T: the share of use is exact, an amount in bytes would be made up."""
    mounts = parse_df(BUSYBOX_HUMAN)
    assert [(mount.filesystem, mount.mount, mount.used_percent) for mount in mounts] == [
        ("/dev/mapper/cachedev_0", "/host/volume1", 89.0),
        ("/dev/mapper/cachedev_1", "/host/volume2", 10.0),
        ("/dev/md0", "/host/log", 28.0),
    ]
    assert {mount.available for mount in mounts} == {None}


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        (POSIX, Mount("/dev/mapper/MyVolGroup-root", "/code", 89.0, 65478188 * KIB, 55206600 * KIB, 6899764 * KIB)),
        (GNU_TYPES, Mount("/dev/sda1", "/", 82.0, 10013884 * KIB, 7752964 * KIB, 1730644 * KIB)),
        (OLD_GNU_TYPES_WRAPPED, Mount("/dev/mapper/vg--data-ephemeral0", "/mnt", 3.0)),
        (GNU_INODES, Mount("overlay", "/", 100.0)),
        (BYTES, Mount("overlay", "/", 2.0, 62671097856, 1000000000, 61671097856)),
        (ODD_UNIT, Mount("/dev/sda3", "/", 98.0, 17381728 * 512, 17107080 * 512, 274648 * 512)),
    ],
    ids=["-P", "-T", "old -hT", "-i", "-B1", "512B"],
)
def test_df_with_options(text: str, mount: Mount) -> None:
    """Each option's header and units are known."""
    assert parse_df(text)[0] == mount


def test_df_without_a_share_says_none() -> None:
    """`-` is not zero."""
    assert parse_df(GNU_INODES)[1] == Mount("/proc", "/proc", None)


def test_df_names_may_hold_blanks_and_percents() -> None:
    """What is looked for is a share of use between amounts and a path."""
    assert [mount.mount for mount in parse_df(GNU_TYPES)[2:]] == ["/tmp/test_mnt/a1 a2", "/tmp/test_mnt/b1  b2"]
    mounts = parse_df(SHARE_NAMES)
    assert [(mount.filesystem, mount.mount, mount.used_percent) for mount in mounts] == [
        ("//nas/Backups of 50% off", "/mnt/sale 50% off /x", 1.0),
        ("nfs.internal:/export/media lib", "/media", 1.0),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sh: df: not found\n",
        "Dateisystem    1K-Blöcke  Benutzt Verfügbar Verw% Eingehängt auf\noverlay 1 1 1 1% /\n",
        "Filesystem 512-blocks Used Available Capacity iused ifree %iused  Mounted on\n/dev/disk1 1 1 1 10% 1 1 0%   /\n",
        GNU + "df: /mnt/gone: Stale file handle\n",
        GNU + "/dev/sdb1 100 50\n",
    ],
    ids=["nothing", "no df", "another language", "of another system", "an error in between", "half a line"],
)
def test_df_that_is_not_understood_is_an_error(text: str) -> None:
    """A table that is only partly understood might leave out the one full disk."""
    with pytest.raises(ValueError, match="df's"):
        parse_df(text)


def test_df_of_this_machine() -> None:
    """The real program, as it is installed here."""
    for options in ([], ["-P"], ["-h"], ["-T"], ["-i"], ["-B1"], ["-m"], ["-k"]):
        text = subprocess.run(["df", *options, "/"], capture_output=True, text=True, check=True, env={"LC_ALL": "C"}).stdout
        (mount,) = parse_df(text)
        assert mount.mount.startswith("/")
        assert (mount.size is None) == (options in (["-h"], ["-i"]))


def test_df_facts_tell_the_fullest_of_all_pods() -> None:
    """The worst of all mounts of all Pods comes first."""
    facts = df_facts({"web-1": GNU, "web-2": POSIX})
    assert_facts_match(ExecCheck, facts)
    assert (facts["worst_used_percent"], facts["worst_mount"], facts["mount_count"]) == (89.0, "/code", 5)
    assert (facts["used_percent"]["/"], facts["least_available"]) == (73.0, 65536 * KIB)
    assert (facts["mounts"][0]["pod"], "truncated" in facts) == ("web-2", False)


def test_df_facts_without_shares_leave_the_worst_unknown() -> None:
    """`semantics.md`, 3: no share of use is no evidence of room."""
    facts = df_facts({"web-1": "Filesystem Inodes IUsed IFree IUse% Mounted on\n/proc 0 0 0 - /proc\n"})
    assert_facts_match(ExecCheck, facts)
    assert "worst_used_percent" not in facts
    assert "least_available" not in facts


def test_df_facts_are_cut_openly() -> None:
    """300 mounts: a hundred rows, and it says so; the worst is of all of them."""
    rows = "".join(f"/dev/sd{number} 100 {number} 1 {number % 100}% /mnt/{'x' * 300}{number}\n" for number in range(300))
    facts = df_facts({"web": f"Filesystem 1K-blocks Used Available Use% Mounted on\n{rows}"})
    assert_facts_match(ExecCheck, facts)
    assert (facts["mount_count"], facts["worst_used_percent"], facts["truncated"]) == (300, 99.0, True)
    assert len(facts["mounts"]) < 100


# --- ps --------------------------------------------------------------------------------------------------------------------

ALPINE = """\
PID   USER     TIME  COMMAND
    1 root      0:11 nginx: master process nginx -g daemon off;
    6 nginx     5h32 nginx: worker process
    9 root      0:00 {run.sh} /bin/sh /run.sh --quiet
   12 root      0:00 [kthreadd]
   18 root      0:00 ps
"""
ALPINE_ELAPSED = """\
PID   ELAPSED COMMAND
    1  1d04   node dispatcher.js
    7  5h32   /usr/bin/ffmpeg -i /in/a.mp4 -f hls /out
    8 02:05   /usr/bin/ffmpeg -i /in/b.mp4 -f hls /out
  120 120d    sleep infinity
   21 00:00   ps -o pid,etime,args
"""
OLD_BUSYBOX_ELAPSED = """\
PID   ELAPSED COMMAND
    1 14453:5 /app
    7 812:09  ffmpeg
"""
PROCPS_AUX = """\
USER         PID %CPU %MEM    VSZ   RSS TTY      STAT START   TIME COMMAND
root           1  0.0  0.1 168136 11844 ?        Ss   Nov20   0:09 /sbin/init
www-data     214 98.7 12.5 912344 401236 ?       Rl   05:44  61:02 php-fpm: pool www
postgres     300  0.0  0.0      0     0 ?        Z    05:45   0:00 [postgres] <defunct>
root        5120  0.0  0.0  10072  3328 pts/0    R+   06:10   0:00 ps aux
"""
PROCPS_EF = """\
UID          PID    PPID  C STIME TTY          TIME CMD
root           1       0  0 05:40 ?        00:00:09 /sbin/init splash
root          33       1  0 05:40 ?        00:00:01  \\_ /lib/systemd/systemd-journald
"""
PROCPS_ELAPSED = """\
    PID ELAPSED COMMAND
      1  432000 /sbin/init
    712    7325 /usr/bin/ffmpeg -i a.mp4
"""
PROCPS_LONG = """\
    PID    PPID STAT %CPU %MEM   RSS    VSZ NLWP     ELAPSED COMMAND
     38      33 SNl   0.0  0.1 13772 169872    3  1-02:03:04 agent-leak-app
     39      33 R     1.5  0.1 13772 169872    3       01:29 agent two words
"""
OPENWRT = """\
  PID USER       VSZ STAT COMMAND
    1 root      1560 S    /sbin/procd
  301 root         0 SW<  [kblockd]
  412 root      1200 S <  /usr/sbin/ntpd -n
"""


def names(text: str) -> list[str]:
    """Return the programs of a table."""
    return [process.name for process in parse_ps(text)]


def test_ps_of_busybox() -> None:
    """Without a column ELAPSED no age is known: TIME is what a process has worked, not how long it has been there."""
    processes = parse_ps(ALPINE)
    assert names(ALPINE) == ["nginx", "nginx", "run.sh", "kthreadd", "ps"]
    assert {process.age for process in processes} == {None}
    assert processes[2].command == "{run.sh} /bin/sh /run.sh --quiet"


def test_ps_of_busybox_with_elapsed() -> None:
    """Busybox writes long times in words of its own; what it drops is less than what it says."""
    ages = {process.pid: process.age for process in parse_ps(ALPINE_ELAPSED)}
    assert ages == {
        1: timedelta(days=1, hours=4),
        7: timedelta(hours=5, minutes=32),
        8: timedelta(minutes=2, seconds=5),
        120: timedelta(days=120),
        21: timedelta(),
    }
    old = [process.age for process in parse_ps(OLD_BUSYBOX_ELAPSED)]
    assert old == [timedelta(minutes=14453, seconds=5), timedelta(minutes=812, seconds=9)]


def test_ps_of_procps() -> None:
    """The usual tables, with shares, states and a zombie."""
    init, php, dead, _ = parse_ps(PROCPS_AUX)
    assert (init.name, php.name, php.cpu_percent, php.memory_percent) == ("init", "php-fpm", 98.7, 12.5)
    assert (dead.name, dead.zombie, php.zombie) == ("postgres", True, False)
    assert names(PROCPS_EF) == ["init", "systemd-journald"]
    assert [process.age for process in parse_ps(PROCPS_ELAPSED)] == [timedelta(days=5), timedelta(seconds=7325)]
    first, second = parse_ps(PROCPS_LONG)
    assert (first.age, second.name, second.command) == (
        timedelta(days=1, hours=2, minutes=3, seconds=4),
        "agent",
        "agent two words",
    )


def test_ps_of_small_busybox_with_states() -> None:
    """A state may hold a blank."""
    assert names(OPENWRT) == ["procd", "kblockd", "ntpd"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sh: ps: not found\n",
        "    1 root /sbin/init\n",
        "    PID COMMAND          COMMAND\n      1 init             /sbin/init\n",
        "    PID                  STARTED CMD\n      1 Sat Nov 21 05:44:03 2026 /sbin/init\n",
        "COMMAND PID\ninit 1\n",
        ALPINE + "ps: broken\n",
        "  PID ELAPSED COMMAND\n    1 soon /sbin/init\n",
    ],
    ids=["nothing", "no ps", "no header", "two commands", "a column with blanks", "command first", "an error in between", "no time"],
)
def test_ps_that_is_not_understood_is_an_error(text: str) -> None:
    """A process that is left out may be the one that is stuck."""
    with pytest.raises(ValueError, match=r"ps'|STARTED|time since"):
        parse_ps(text)


def test_ps_of_this_machine() -> None:
    """The real program, as it is installed here."""
    for options in (["aux"], ["-ef"], ["-eo", "pid,etimes,args"], ["-eo", "pid,etime,stat,pcpu,pmem,cmd"], ["-eo", "pid,comm"], ["axf"]):
        text = subprocess.run(["ps", *options], capture_output=True, text=True, check=True, env={"LC_ALL": "C"}).stdout
        assert "ps" in names(text), options
        assert all((process.age is not None) == ("etime" in options[-1]) for process in parse_ps(text))


@pytest.mark.parametrize("text", ["441077234-00:18:40", "4123168608", "4123168576", "4294967295"])
def test_a_process_begun_since_ps_read_the_clock_is_not_a_century_old(text: str) -> None:
    """What procps 4.0.2 prints then, as seen on a host whose clock had just been stepped."""
    assert parse_elapsed(text) == timedelta()


@pytest.mark.parametrize("text", ["", "-1", "1:2:3:4", "5h3", "1e3", "٣", "12345678901"])
def test_a_time_that_is_none_is_an_error(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(ValueError, match="no time"):
        parse_elapsed(text)


def test_program_of_a_command() -> None:
    """The program's name, whatever stands around it."""
    assert [program(text) for text in ("/usr/bin/python3 -m x", "sshd: root@pts/0", "/", "", "[a]b] c", "{x")] == [
        "python3",
        "sshd",
        "/",
        "",
        "a",
        "{x",
    ]


def test_ps_facts_count_and_age_by_program() -> None:
    """Stuck processes are found by the age of the oldest of their name, in all Pods."""
    facts = ps_facts({"t-1": ALPINE_ELAPSED, "t-2": PROCPS_ELAPSED})
    assert_facts_match(ExecCheck, facts)
    assert (facts["processes"], facts["process_counts"]["ffmpeg"], facts["zombies"]) == (7, 3, 0)
    assert facts["oldest_seconds"]["ffmpeg"] == 5 * 3600 + 32 * 60
    assert (facts["process_list"][0]["program"], facts["process_list"][0]["age"]) == ("sleep", timedelta(days=120))


def test_ps_facts_without_ages_leave_them_unknown() -> None:
    """An unknown age is not a young one."""
    facts = ps_facts({"web": ALPINE})
    assert_facts_match(ExecCheck, facts)
    assert "oldest_seconds" not in facts


def test_s03_a_table_without_processes_is_an_error() -> None:
    """`semantics.md`, 3: ps always sees itself; a table without any process proves nothing."""
    with pytest.raises(ValueError, match="without processes"):
        ps_facts({"web": "PID USER TIME COMMAND\n"})


# --- numbers, lines, JSON --------------------------------------------------------------------------------------------------


def test_one_number() -> None:
    """One number for each Pod, and nothing else around it."""
    facts = number_facts({"a": "12\n"})
    assert_facts_match(ExecCheck, facts)
    assert facts == {"number": 12.0, "number_max": 12.0, "number_min": 12.0, "number_sum": 12.0}
    assert number_facts({"a": " -1.5e2 ", "b": "3"}) == {"number_max": 3.0, "number_min": -150.0, "number_sum": -147.0}
    for text in ("", "12 files", "0x1f", "nan", "inf", "1e999", "1,200", "1\n2", "--1"):
        with pytest.raises(ValueError, match="not one number"):
            number_facts({"a": text})


def test_lines_that_are_not_blank() -> None:
    """Blank lines don't count."""
    assert lines_facts({"a": "x\n\n  \ny", "b": ""}) == {"line_count": 2}


def test_json_is_picked_from() -> None:
    """Numbers, strings and booleans by pointer; null, lists and what is not there are missing, and unknown."""
    text = json.dumps({"queue": {"length": 7, "name": "jobs", "paused": False, "a/b": 1.5}, "jobs": [{"id": 1}], "none": None})
    pick = {
        "length": "/queue/length",
        "name": "/queue/name",
        "paused": "/queue/paused",
        "odd": "/queue/a~1b",
        "job": "/jobs/0/id",
        "none": "/none",
        "jobs": "/jobs",
        "away": "/away/0",
    }
    facts = json_facts(text, pick)
    assert_facts_match(ExecCheck, facts)
    assert facts["json_numbers"] == {"length": 7.0, "odd": 1.5, "job": 1.0}
    assert facts["json_texts"] == {"name": "jobs", "paused": "false"}
    assert facts["json"]["jobs"] == [{"id": 1}]
    assert "none" not in facts["json"]


@pytest.mark.parametrize("text", ["", "{", "NaN", '{"a": 1e999}', "[" * 100_000, '"\\ud800"', "1" * 600])
def test_what_is_no_json_is_an_error(text: str) -> None:
    """Nor is what other programs would not read alike."""
    with pytest.raises(ValueError, match=r".*"):
        json_facts(text, {})


def test_a_large_document_is_left_out_but_picked_from() -> None:
    """It says that something was cut."""
    facts = json_facts(json.dumps({"n": 1, "items": ["x" * 400] * 90}), {"n": "/n"})
    assert_facts_match(ExecCheck, facts)
    assert (facts["json_numbers"], facts["truncated"], "json" in facts) == ({"n": 1.0}, True, False)


def test_all_facts_of_a_command_fit_together() -> None:
    """`semantics.md`, 4: the largest outputs, in characters of four bytes, stay within 64 KiB with everything else."""
    wide = "\U0001f600" * 500
    rows = "".join(f"/dev/sd{number} 100 {number} 1 {number % 100}% /{wide}{number}\n" for number in range(300))
    names = "".join(f"{number:5} 00:01 {wide}{number} -x\n" for number in range(300))
    pick = {f"n{number}": f"/n{number}" for number in range(20)}
    for facts in (
        df_facts({"web": f"Filesystem 1K-blocks Used Available Use% Mounted on\n{rows}"}),
        ps_facts({"web": f"PID ELAPSED COMMAND\n{names}"}),
        json_facts(json.dumps({f"n{number}": wide for number in range(20)}), pick),
    ):
        samples = texts([wide] * 20)[0]
        whole = {"stdout": samples, "stderr": samples, **facts}
        assert_facts_match(ExecCheck, whole)
        assert whole["truncated"]
