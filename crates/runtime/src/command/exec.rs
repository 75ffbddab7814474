//! `exec`.

use moat_model::oci;
use moat_sandbox::container::{self, ExecOptions};
use moat_sandbox::record::Recorder;
use moat_sandbox::{Context, Error, Result};

use super::build::absolute_file;
use super::{Session, container_id};
use crate::cli::ExecArgs;
use crate::foreground;

/// The exit code of an exec that failed by itself, which runc chose outside of what programs end with.
const FAILED: u8 = 255;

pub(crate) fn exec(session: &Session<'_>, args: &ExecArgs) -> Result<u8> {
    execute(session, args).map_err(|error| error.with_code(FAILED))
}

#[expect(clippy::print_stderr, reason = "standard output belongs to the process")]
fn execute(session: &Session<'_>, args: &ExecArgs) -> Result<u8> {
    let id = container_id(&args.id)?;
    foreground::check_preserved(args.preserve_fds)?;
    let mut process = process(session, args)?;
    let host = session.host()?;
    let options = ExecOptions {
        console_socket: args.console_socket.clone(),
        pid_file: args.pid_file.as_deref().map(absolute_file).transpose()?,
        preserve_fds: args.preserve_fds,
        ignore_paused: args.ignore_paused,
        cgroup: args.cgroup.clone(),
    };
    if !args.detach {
        foreground::prepare(!args.no_subreaper)?;
        foreground::adopt_process_size(&mut process);
    }
    let mut recorder = Recorder::new(args.explain, None);
    let mut running =
        container::exec(&session.store, &id, &process, &options, &host, args.detach, &mut recorder)?;
    running.warnings.iter().for_each(|warning| session.log.warn(warning));
    foreground::send_pidfd(args.pidfd_socket.as_deref(), &running)?;
    if args.explain {
        eprint!("{}", recorder.waterfall());
    }
    if args.detach { Ok(0) } else { foreground::tend(&mut running) }
}

/// The process: from a file, or the container's own with the changes of the flags.
fn process(session: &Session<'_>, args: &ExecArgs) -> Result<oci::Process> {
    if let Some(path) = &args.process {
        let text = std::fs::read(path).context(|| path.display().to_string())?;
        return serde_json::from_slice(&text)
            .map_err(|error| Error::new(format!("{}: {error}", path.display())));
    }
    let (folder, _) = container::load(&session.store, &container_id(&args.id)?)?;
    let spec = folder.config()?;
    let mut process =
        spec.process.ok_or_else(|| Error::new("the container's configuration has no process"))?;
    if args.command.is_empty() {
        return Err(Error::new("exec needs a program, or --process"));
    }
    process.args.clone_from(&args.command);
    process.terminal = args.tty;
    process.env.extend(args.env.iter().cloned());
    process.user.additional_gids.extend(&args.additional_gids);
    process.no_new_privileges |= args.no_new_privs;
    if let Some(cwd) = &args.cwd {
        process.cwd.clone_from(cwd);
    }
    if let Some(user) = &args.user {
        (process.user.uid, process.user.gid) = parse_user(user, process.user.gid)?;
    }
    if let Some(label) = &args.process_label {
        process.selinux_label.clone_from(label);
    }
    if let Some(profile) = &args.apparmor {
        process.apparmor_profile.clone_from(profile);
    }
    if !args.cap.is_empty() {
        let sets = process.capabilities.get_or_insert_default();
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            set.extend(args.cap.iter().filter(|name| !set.contains(name)).cloned().collect::<Vec<_>>());
        }
    }
    Ok(process)
}

/// `UID` or `UID:GID`, decimal and within 32 bits: anything else is an error, never root.
fn parse_user(text: &str, gid: u32) -> Result<(u32, u32)> {
    let number = |part: &str| {
        let plain = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        // The highest value means "no id" to the kernel.
        let parsed = part.parse::<u32>().ok().filter(|number| plain && *number != u32::MAX);
        parsed.ok_or_else(|| {
            Error::new(format!("--user {text:?} is not a known user: it must be UID or UID:GID in numbers"))
        })
    };
    match text.split_once(':') {
        Some((user, group)) => Ok((number(user)?, number(group)?)),
        None => Ok((number(text)?, gid)),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_user;

    #[test]
    fn a_user_is_a_number_or_an_error() {
        assert_eq!(parse_user("5", 7).unwrap(), (5, 7));
        assert_eq!(parse_user("5:6", 7).unwrap(), (5, 6));
        for bad in [
            "",
            ":",
            "5:",
            ":6",
            "root",
            "-1",
            "+5",
            " 5",
            "5 ",
            "0x5",
            "4294967295",
            "4294967296",
            "5:6:7",
            "1e3",
        ] {
            assert!(parse_user(bad, 0).is_err(), "{bad:?}");
        }
    }
}
