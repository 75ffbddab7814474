//! The command line as clap sees it: one struct a command, the names and meanings of runc's flags.

use std::path::PathBuf;

use clap::{Args, FromArgMatches, Subcommand, ValueEnum};

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Cli {
    pub(crate) global: Global,
    pub(crate) command: Command,
}

/// Parses the command line. The arguments of a command are put together only when it is the one that was
/// given: putting together all of them takes longer than all else that happens before a container is made.
pub(crate) fn parse(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Cli, clap::Error> {
    let mut matches = command_line().try_get_matches_from(arguments)?;
    let global = Global::from_arg_matches_mut(&mut matches)?;
    let command = Command::from_arg_matches_mut(&mut matches)?;
    Ok(Cli { global, command })
}

fn command_line() -> clap::Command {
    let program = clap::Command::new("moat-runtime")
        .about("An OCI runtime: containers from bundles")
        .version(VERSION)
        .subcommand_required(true)
        .disable_help_subcommand(true)
        .arg_required_else_help(true);
    Global::augment_args(program).subcommands(COMMANDS.iter().map(|(name, about, arguments)| {
        let command = clap::Command::new(*name).about(*about).defer(*arguments);
        match *name {
            "list" => command.visible_alias("ls"),
            // A command that is refused takes whatever flags its callers have.
            "checkpoint" | "restore" => command.disable_help_flag(true),
            _ => command,
        }
    }))
}

/// Name, meaning, and what puts the arguments together.
type Entry = (&'static str, &'static str, fn(clap::Command) -> clap::Command);

/// The commands; the names are those of [`Command`]'s variants.
const COMMANDS: [Entry; 18] = [
    ("create", "Create a container; its program waits for start", CreateArgs::augment_args),
    ("start", "Run the program of a created container", StartArgs::augment_args),
    (
        "run",
        "Create a container, run its program, wait for it and delete the container",
        RunArgs::augment_args,
    ),
    ("state", "Print the state of a container", Id::augment_args),
    ("kill", "Send a signal to a container", KillArgs::augment_args),
    ("delete", "Delete a container", DeleteArgs::augment_args),
    ("exec", "Run a further process in a container", ExecArgs::augment_args),
    ("ps", "List the processes of a container", PsArgs::augment_args),
    ("list", "List containers", ListArgs::augment_args),
    ("pause", "Freeze all processes of a container", Id::augment_args),
    ("resume", "Thaw a paused container", Id::augment_args),
    ("update", "Change the limits of a container", UpdateArgs::augment_args),
    ("events", "Print statistics and out-of-memory events as they come", EventsArgs::augment_args),
    ("stats", "Print statistics once, for people", StatsArgs::augment_args),
    ("spec", "Write a configuration to start from", SpecArgs::augment_args),
    ("features", "Print what this runtime can do", |command| command),
    ("checkpoint", "Checkpoint a container (not supported yet)", Rest::augment_args),
    ("restore", "Restore a container (not supported yet)", Rest::augment_args),
];

// containerd and Podman look for the second line. A test holds the specification's version to the model's.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\nspec: 1.3.0");

// Flags that stand before the command. (A doc comment would become the text of the help.)
#[derive(Args, Debug)]
pub(crate) struct Global {
    /// Folder for the state of containers [default: /run/moat-runtime, for others than root $XDG_RUNTIME_DIR/moat-runtime]
    #[arg(long)]
    pub(crate) root: Option<PathBuf>,
    /// File for errors and warnings
    #[arg(long)]
    pub(crate) log: Option<PathBuf>,
    /// Form of that file
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// Say more
    #[arg(long)]
    pub(crate) debug: bool,
    /// Do without the privileges of root: true, false or auto
    #[arg(long, value_enum, default_value = "auto", hide_possible_values = true)]
    pub(crate) rootless: Rootless,
    /// Have systemd make the cgroups (not supported yet)
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,
    /// Path of criu (accepted and unused: checkpoints are not supported yet)
    #[arg(long, hide = true)]
    pub(crate) criu: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rootless {
    Auto,
    True,
    False,
}

/// The commands with their arguments.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    Create(CreateArgs),
    Start(StartArgs),
    Run(RunArgs),
    State(Id),
    Kill(KillArgs),
    Delete(DeleteArgs),
    Exec(Box<ExecArgs>),
    Ps(PsArgs),
    List(ListArgs),
    Pause(Id),
    Resume(Id),
    Update(Box<UpdateArgs>),
    Events(EventsArgs),
    Stats(StatsArgs),
    Spec(SpecArgs),
    Features,
    Checkpoint(Rest),
    Restore(Rest),
}

#[derive(Args, Debug)]
pub(crate) struct Rest {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) rest: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct StartArgs {
    #[arg(long, hide = true)]
    pub(crate) stop_after: Option<String>,
    /// Container
    pub(crate) id: String,
}

#[derive(Args, Debug)]
pub(crate) struct Id {
    /// Container
    pub(crate) id: String,
}

// What create and run share.
#[derive(Args, Debug)]
pub(crate) struct Build {
    /// Folder with config.json [default: the working directory]
    #[arg(short, long)]
    pub(crate) bundle: Option<PathBuf>,
    /// Unix socket that gets the master of the terminal
    #[arg(long)]
    pub(crate) console_socket: Option<PathBuf>,
    /// Unix socket that gets a pidfd of the first process
    #[arg(long)]
    pub(crate) pidfd_socket: Option<PathBuf>,
    /// File for the id of the first process
    #[arg(long)]
    pub(crate) pid_file: Option<PathBuf>,
    /// Move the root mount instead of pivoting: for a root on an initramfs only, it is less safe
    #[arg(long)]
    pub(crate) no_pivot: bool,
    /// Keep the session keyring of the caller
    #[arg(long)]
    pub(crate) no_new_keyring: bool,
    /// Number of descriptors from 3 on that the program inherits
    #[arg(long, default_value_t = 0)]
    pub(crate) preserve_fds: u32,
    /// Run an init as PID 1 that forwards signals and reaps zombies
    #[arg(long)]
    pub(crate) init: bool,
    /// Print every step with its duration and what does the same by hand
    #[arg(long)]
    pub(crate) explain: bool,
    /// Print the steps and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Stop the runtime after a step, as `runtime:N` or `init:N`: for tests that kill it there
    #[arg(long, hide = true)]
    pub(crate) stop_after: Option<String>,
    /// Container
    pub(crate) id: String,
}

#[derive(Args, Debug)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    pub(crate) build: Build,
}

#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) build: Build,
    /// Do not wait for the program
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Keep the container when the program has ended
    #[arg(long)]
    pub(crate) keep: bool,
    /// Do not adopt orphaned processes
    #[arg(long)]
    pub(crate) no_subreaper: bool,
}

#[derive(Args, Debug)]
pub(crate) struct KillArgs {
    /// All processes of the container, not only the first
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Container
    pub(crate) id: String,
    /// Name or number
    #[arg(default_value = "SIGTERM")]
    pub(crate) signal: String,
}

#[derive(Args, Debug)]
pub(crate) struct DeleteArgs {
    /// Also a container that runs, or is half-built, or does not exist
    #[arg(short, long)]
    pub(crate) force: bool,
    #[arg(long, hide = true)]
    pub(crate) stop_after: Option<String>,
    /// Container
    pub(crate) id: String,
}

#[derive(Args, Debug)]
pub(crate) struct ExecArgs {
    /// Unix socket that gets the master of the terminal
    #[arg(long)]
    pub(crate) console_socket: Option<PathBuf>,
    /// Unix socket that gets a pidfd of the process
    #[arg(long)]
    pub(crate) pidfd_socket: Option<PathBuf>,
    /// Working directory
    #[arg(long)]
    pub(crate) cwd: Option<PathBuf>,
    /// NAME=value, may be given several times
    #[arg(short, long)]
    pub(crate) env: Vec<String>,
    /// Give the process a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// UID or UID:GID
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Supplementary groups
    #[arg(short = 'g', long)]
    pub(crate) additional_gids: Vec<u32>,
    /// File with the process section of a configuration
    #[arg(short, long)]
    pub(crate) process: Option<PathBuf>,
    /// Do not wait for the process
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// File for the id of the process
    #[arg(long)]
    pub(crate) pid_file: Option<PathBuf>,
    /// SELinux label
    #[arg(long)]
    pub(crate) process_label: Option<String>,
    /// AppArmor profile
    #[arg(long)]
    pub(crate) apparmor: Option<String>,
    /// Set no_new_privs
    #[arg(long)]
    pub(crate) no_new_privs: bool,
    /// Add a capability to the bounding, effective, permitted and ambient sets
    #[arg(short, long)]
    pub(crate) cap: Vec<String>,
    /// Number of descriptors from 3 on that the process inherits
    #[arg(long, default_value_t = 0)]
    pub(crate) preserve_fds: u32,
    /// A cgroup below the container's
    #[arg(long)]
    pub(crate) cgroup: Option<String>,
    /// Allow a paused container: the process waits until it is resumed
    #[arg(long)]
    pub(crate) ignore_paused: bool,
    /// Do not adopt orphaned processes
    #[arg(long)]
    pub(crate) no_subreaper: bool,
    /// Print every step with its duration and what does the same by hand
    #[arg(long)]
    pub(crate) explain: bool,
    /// Container
    pub(crate) id: String,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

#[derive(Args, Debug)]
pub(crate) struct PsArgs {
    /// Form of the answer
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) format: Format,
    /// Container
    pub(crate) id: String,
    /// Options of ps(1) [default: -ef]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) options: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    /// Form of the answer
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) format: Format,
    /// Print only names
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Args, Debug)]
pub(crate) struct UpdateArgs {
    /// File with the resources section of a configuration, - for standard input
    #[arg(short, long)]
    pub(crate) resources: Option<PathBuf>,
    /// Weight of block I/O, 10 to 1000
    #[arg(long)]
    pub(crate) blkio_weight: Option<u16>,
    /// Microseconds of CPU time in a period; -1 for no limit
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<i64>,
    /// Microseconds of a period
    #[arg(long)]
    pub(crate) cpu_period: Option<u64>,
    /// Microseconds of CPU time that may be saved up
    #[arg(long)]
    pub(crate) cpu_burst: Option<u64>,
    /// Weight of CPU time, 2 to 262144
    #[arg(long, visible_alias = "cpu-shares")]
    pub(crate) cpu_share: Option<u64>,
    /// Microseconds of a real-time period
    #[arg(long)]
    pub(crate) cpu_rt_period: Option<u64>,
    /// Microseconds of real-time scheduling in a period
    #[arg(long)]
    pub(crate) cpu_rt_runtime: Option<i64>,
    /// 1 makes the container SCHED_IDLE
    #[arg(long)]
    pub(crate) cpu_idle: Option<i64>,
    /// CPUs, as 0-3,7
    #[arg(long)]
    pub(crate) cpuset_cpus: Option<String>,
    /// NUMA nodes
    #[arg(long)]
    pub(crate) cpuset_mems: Option<String>,
    /// Kernel memory (obsolete, refused by kernels since 5.4)
    #[arg(long, hide = true)]
    pub(crate) kernel_memory: Option<String>,
    /// Kernel TCP memory in bytes
    #[arg(long, hide = true)]
    pub(crate) kernel_memory_tcp: Option<String>,
    /// Memory in bytes, also as 100M; -1 for no limit
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) memory: Option<String>,
    /// Soft limit of memory in bytes
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) memory_reservation: Option<String>,
    /// Memory plus swap in bytes; -1 for no limit
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<String>,
    /// Most tasks; -1 for no limit
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<i64>,
    /// Intel RDT (not supported yet)
    #[arg(long, hide = true)]
    pub(crate) l3_cache_schema: Option<String>,
    /// Intel RDT (not supported yet)
    #[arg(long, hide = true)]
    pub(crate) mem_bw_schema: Option<String>,
    /// Container
    pub(crate) id: String,
}

#[derive(Args, Debug)]
pub(crate) struct EventsArgs {
    /// Time between statistics, as 5s
    #[arg(long, default_value = "5s")]
    pub(crate) interval: String,
    /// Print statistics once and end
    #[arg(long)]
    pub(crate) stats: bool,
    /// Container
    pub(crate) id: String,
}

#[derive(Args, Debug)]
pub(crate) struct StatsArgs {
    /// Form of the answer
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) format: Format,
    /// Container
    pub(crate) id: String,
}

#[derive(Args, Debug)]
pub(crate) struct SpecArgs {
    /// Folder to write config.json to [default: the working directory]
    #[arg(short, long)]
    pub(crate) bundle: Option<PathBuf>,
    /// For an ordinary user
    #[arg(long)]
    pub(crate) rootless: bool,
}

#[cfg(test)]
mod tests {
    use clap::Subcommand;

    use super::{COMMANDS, Command, VERSION, command_line};

    #[test]
    fn the_command_line_is_consistent() {
        let mut line = command_line();
        line.build();
        line.debug_assert();
        assert!(VERSION.ends_with(moat_model::oci::VERSION));
    }

    #[test]
    fn the_table_has_every_command() {
        let derived = Command::augment_subcommands(clap::Command::new("moat-runtime"));
        let names: Vec<&str> = derived.get_subcommands().map(clap::Command::get_name).collect();
        assert_eq!(names, COMMANDS.map(|(name, ..)| name));
    }
}
