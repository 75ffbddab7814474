//! `moat top`.

use clap::Args;
use moat_engine::{ProcessInfo, Timestamp};

use crate::failure::{Failure, Result};
use crate::format::table;
use crate::line::Verb;
use crate::session::{Session, print};

#[derive(Args, Debug)]
#[command(override_usage = "moat top WORKLOAD [-o COLUMN,...]")]
pub(crate) struct Top {
    /// Workload, then `-ef`, `aux` or `-o COLUMN,...` of ps(1)
    #[arg(required = true, trailing_var_arg = true, num_args = 1.., value_name = "WORKLOAD [OPTIONS]")]
    words: Vec<String>,
}

/// A column: its name for `-o`, its heading, and its text.
type Column = (&'static str, &'static str, fn(&ProcessInfo) -> String);

const COLUMNS: [Column; 14] = [
    ("user", "UID", |process| user(process.user)),
    ("uid", "UID", |process| process.user.to_string()),
    ("pid", "PID", |process| process.pid.to_string()),
    ("ppid", "PPID", |process| process.parent.to_string()),
    ("c", "C", |process| (share(process) as u64).to_string()),
    ("%cpu", "%CPU", |process| format!("{:.1}", share(process))),
    ("stime", "STIME", start),
    ("tty", "TTY", |process| if process.terminal == 0 { "?".to_owned() } else { terminal(process.terminal) }),
    ("time", "TIME", |process| time(process.cpu_ms / 1000)),
    ("etime", "ELAPSED", |process| time(process.age_ms / 1000)),
    ("rss", "RSS", |process| (process.resident_bytes / 1024).to_string()),
    ("stat", "STAT", |process| process.state.to_string()),
    ("comm", "COMMAND", |process| process.name.clone()),
    ("cmd", "CMD", |process| process.command.clone()),
];

const FULL: &str = "user,pid,ppid,c,stime,tty,time,cmd";
const USERS: &str = "user,pid,%cpu,rss,tty,stat,stime,time,cmd";

impl Verb for Top {
    const NAME: &'static str = "top";
    const ABOUT: &'static str = "List the processes of a workload";

    fn run(self, session: &Session) -> Result<u8> {
        let (name, options) =
            self.words.split_first().ok_or_else(|| Failure::new("a workload is missing"))?;
        let columns = columns(options)?;
        let processes = session.engine()?.find(name)?.top()?;
        let mut rows = vec![columns.iter().map(|(_, heading, _)| (*heading).to_owned()).collect::<Vec<_>>()];
        rows.extend(processes.iter().map(|process| columns.iter().map(|(.., text)| text(process)).collect()));
        print(&table::align(&rows))?;
        Ok(0)
    }
}

/// The columns that options of ps(1) mean.
fn columns(options: &[String]) -> Result<Vec<Column>> {
    let words: Vec<&str> = options.iter().map(String::as_str).collect();
    let names = match words.as_slice() {
        [] | ["-ef"] => FULL,
        ["aux" | "-aux" | "-u" | "u"] => USERS,
        ["-o" | "-eo", names] => names,
        [word] if word.starts_with("-o") => &word[2..],
        _ => {
            return Err(Failure::new(format!("options {words:?} of ps are not supported"))
                .hint("there are -ef, aux and -o COLUMN,..."));
        }
    };
    let find = |name: &str| {
        let known = COLUMNS.iter().find(|(known, ..)| {
            *known
                == match name {
                    "args" | "command" => "cmd",
                    "pcpu" => "%cpu",
                    "s" | "state" => "stat",
                    "tname" | "tt" => "tty",
                    "start" => "stime",
                    "ucmd" => "comm",
                    other => other,
                }
        });
        known.copied().ok_or_else(|| {
            let all: Vec<&str> = COLUMNS.iter().map(|(known, ..)| *known).collect();
            Failure::new(format!("there is no column {name:?}; there are {}", all.join(", ")))
        })
    };
    names.split(',').map(find).collect()
}

/// The host's name of a user, read from its own file.
fn user(id: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let wanted = id.to_string();
    let line = passwd.lines().find(|line| line.split(':').nth(2) == Some(&wanted));
    line.and_then(|line| line.split(':').next()).map_or(wanted.clone(), str::to_owned)
}

fn share(process: &ProcessInfo) -> f64 {
    if process.age_ms == 0 { 0.0 } else { process.cpu_ms as f64 * 100.0 / process.age_ms as f64 }
}

fn start(process: &ProcessInfo) -> String {
    let started = Timestamp::now().nanoseconds().saturating_sub(process.age_ms * 1_000_000);
    let Ok(stamp) = jiff::Timestamp::from_nanosecond(started.into()) else { return String::new() };
    let form = if process.age_ms < 24 * 3_600_000 { "%H:%M" } else { "%b%d" };
    stamp.to_zoned(jiff::tz::TimeZone::system()).strftime(form).to_string()
}

fn time(seconds: u64) -> String {
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// A terminal by its device number.
fn terminal(device: u32) -> String {
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
    match major {
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        4 => format!("tty{minor}"),
        _ => format!("{major}:{minor}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{columns, terminal, time};

    #[test]
    fn options_of_ps() {
        let names = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            columns(&words)
                .map(|columns| columns.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(","))
        };
        assert_eq!(names(&[]).unwrap(), super::FULL);
        assert_eq!(names(&["aux"]).unwrap(), super::USERS);
        assert_eq!(names(&["-o", "pid,args"]).unwrap(), "pid,cmd");
        assert_eq!(names(&["-opid"]).unwrap(), "pid");
        assert!(names(&["-o", "pid,nice"]).is_err());
        assert!(names(&["-Z"]).is_err());
    }

    #[test]
    fn times_and_terminals() {
        assert_eq!(time(3_725), "01:02:05");
        assert_eq!(terminal(0x8803), "pts/3");
        assert_eq!(terminal(0x0401), "tty1");
    }
}
