//! `ps`.

use std::process::Command;

use moat_sandbox::{Context, Error, Result, container};

use super::output::{json_line, print};
use super::{Session, container_id};
use crate::cli::{Format, PsArgs};

pub(crate) fn ps(session: &Session<'_>, args: &PsArgs) -> Result<u8> {
    let (_, state) = container::load(&session.store, &container_id(&args.id)?)?;
    if state.cgroup.is_empty() {
        return Err(Error::new(format!(
            "container {} has no cgroup, which is what tells its processes",
            args.id
        )));
    }
    let pids = state.cgroup.pids()?;
    let answer = match args.format {
        Format::Json => json_line(&pids)?,
        Format::Table => select(&run_ps(&args.options)?, &pids)?,
    };
    print(&answer)?;
    Ok(0)
}

/// What ps(1) tells of all processes.
fn run_ps(options: &[String]) -> Result<String> {
    let options = if options.is_empty() { &["-ef".to_owned()] } else { options };
    let output = Command::new("ps").args(options).output().context(|| "ps")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::new(format!("ps {}: {}", options.join(" "), said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The head and the lines of the processes `pids`.
fn select(table: &str, pids: &[i32]) -> Result<String> {
    let mut lines = table.lines();
    let head = lines.next().unwrap_or_default();
    let column = head.split_whitespace().position(|title| title == "PID");
    let column = column.ok_or_else(|| {
        Error::new("the options of ps give no column PID, by which the processes are found")
    })?;
    let mut text = format!("{head}\n");
    for line in lines.filter(|line| !line.trim().is_empty()) {
        let field = line.split_whitespace().nth(column).unwrap_or_default();
        let pid: i32 = field.parse().map_err(|_| {
            Error::new(format!("the column PID of ps holds {field:?}: a column before it holds spaces"))
                .hint("let PID be the first column, as in `-o pid,comm`")
        })?;
        if pids.contains(&pid) {
            text += line;
            text.push('\n');
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::select;

    #[test]
    fn only_the_processes_of_the_container() {
        let table = "UID   PID  PPID CMD\nroot    1     0 init 7\nroot    7     1 sleep\n";
        assert_eq!(select(table, &[7, 9]).unwrap(), "UID   PID  PPID CMD\nroot    7     1 sleep\n");
        assert!(select("CMD\nx\n", &[7]).unwrap_err().to_string().contains("no column PID"));
        let error = select("CMD PID\na b 7\n", &[7]).unwrap_err();
        assert!(error.to_string().contains("holds \"b\""), "{error}");
    }
}
