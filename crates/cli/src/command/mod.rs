//! The commands, a file for each or for a few that belong together.

mod archive;
mod compare;
mod completions;
mod events;
mod exec;
mod files;
mod images;
mod inspect;
mod kernel;
mod life;
mod login;
pub(crate) mod logs;
mod man;
mod network;
mod ps;
mod pull;
mod run;
mod start;
mod stats;
mod system;
mod top;
mod version;
pub(crate) mod volume;

use crate::failure::{Failure, Result};
use crate::line::{Entry, Group, entry, named};
use crate::session::print;

/// The commands at the top, in the order of the help.
pub(crate) const COMMANDS: &[Entry] = &[
    entry::<run::Run>(),
    entry::<exec::Exec>(),
    entry::<ps::Ps>(),
    entry::<pull::PullImage>(),
    entry::<pull::PushImage>(),
    entry::<images::Images>(),
    entry::<login::Login>(),
    entry::<login::Logout>(),
    entry::<compare::Compare>(),
    entry::<version::Version>(),
    entry::<system::Info>(),
    entry::<start::Attach>(),
    entry::<files::Commit>(),
    entry::<files::Copy>(),
    entry::<run::Create>(),
    entry::<files::Diff>(),
    entry::<events::Events>(),
    entry::<files::Export>(),
    entry::<images::History>(),
    entry::<archive::Import>(),
    entry::<inspect::Inspect>(),
    entry::<start::Kill>(),
    entry::<archive::Load>(),
    entry::<logs::Logs>(),
    entry::<life::Pause>(),
    entry::<life::Port>(),
    entry::<life::Rename>(),
    entry::<start::Restart>(),
    entry::<life::Remove>(),
    entry::<images::RemoveImage>(),
    entry::<archive::Save>(),
    entry::<start::Start>(),
    entry::<stats::Stats>(),
    entry::<start::Stop>(),
    entry::<images::Tag>(),
    entry::<top::Top>(),
    entry::<life::Unpause>(),
    entry::<life::Update>(),
    entry::<life::Wait>(),
    entry::<completions::Completions>(),
    entry::<man::Man>(),
];

/// Commands about one kind of object.
pub(crate) const GROUPS: &[Group] = &[
    Group {
        name: "container",
        about: "Commands about workloads",
        entries: &[
            entry::<start::Attach>(),
            entry::<files::Commit>(),
            entry::<files::Copy>(),
            entry::<run::Create>(),
            entry::<files::Diff>(),
            entry::<exec::Exec>(),
            entry::<files::Export>(),
            named::<inspect::InspectContainer>("inspect", &[]),
            entry::<start::Kill>(),
            entry::<logs::Logs>(),
            named::<ps::Ps>("ls", &["list", "ps"]),
            entry::<life::Pause>(),
            entry::<life::Port>(),
            named::<system::PruneContainers>("prune", &[]),
            entry::<life::Rename>(),
            entry::<start::Restart>(),
            named::<life::Remove>("rm", &["remove"]),
            entry::<run::Run>(),
            entry::<start::Start>(),
            entry::<stats::Stats>(),
            entry::<start::Stop>(),
            entry::<top::Top>(),
            entry::<life::Unpause>(),
            entry::<life::Update>(),
            entry::<life::Wait>(),
        ],
    },
    Group {
        name: "image",
        about: "Commands about images",
        entries: &[
            entry::<images::History>(),
            entry::<archive::Import>(),
            named::<inspect::InspectImage>("inspect", &[]),
            entry::<archive::Load>(),
            named::<images::Images>("ls", &["list"]),
            entry::<images::PruneImages>(),
            entry::<pull::PullImage>(),
            entry::<pull::PushImage>(),
            named::<images::RemoveImage>("rm", &["remove"]),
            entry::<archive::Save>(),
            entry::<images::Tag>(),
        ],
    },
    Group {
        name: "kernel",
        about: "Commands about the kernels of microVMs",
        entries: &[
            entry::<kernel::Import>(),
            named::<kernel::List>("ls", &["list"]),
            named::<kernel::Remove>("rm", &["remove"]),
            entry::<kernel::Use>(),
        ],
    },
    Group {
        name: "network",
        about: "Commands about networks",
        entries: &[
            entry::<network::Connect>(),
            entry::<network::Create>(),
            entry::<network::Disconnect>(),
            entry::<network::Inspect>(),
            named::<network::List>("ls", &["list"]),
            entry::<network::Prune>(),
            named::<network::Remove>("rm", &["remove"]),
        ],
    },
    Group {
        name: "system",
        about: "Commands about all of Moat",
        entries: &[
            entry::<system::Check>(),
            entry::<system::DiskFree>(),
            entry::<events::Events>(),
            entry::<system::Info>(),
            entry::<system::Prune>(),
        ],
    },
    Group {
        name: "volume",
        about: "Commands about volumes",
        entries: &[
            entry::<volume::Create>(),
            entry::<volume::Inspect>(),
            named::<volume::List>("ls", &["list"]),
            entry::<volume::Prune>(),
            named::<volume::Remove>("rm", &["remove"]),
        ],
    },
];

/// Does something for each name and prints the line that it gives. One that fails is told, and the others are done
/// all the same.
fn each(names: &[String], act: impl Fn(&str) -> Result<Option<String>>) -> Result<u8> {
    let mut code = 0;
    for name in names {
        match act(name) {
            Ok(line) => print(&line.map_or(String::new(), |line| format!("{line}\n")))?,
            Err(failure) => {
                code = failure.exit_code(1);
                Failure::print(&failure);
            }
        }
    }
    Ok(code)
}

/// One line for each.
fn each_line(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}
