//! Device nodes, links and the terminal.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use moat_linux::fs::{self, Follow};
use moat_linux::{Errno, mount, tty};
use rustix::fs::{CWD, FileType, OFlags, Stat};

use super::Init;
use crate::step::{Node, Terminal};
use crate::sync::FromInit;
use crate::tree::{self, Kind};
use crate::{Context, Error, Result};

fn file_type(node: &Node) -> FileType {
    match node.kind {
        'b' => FileType::BlockDevice,
        'p' => FileType::Fifo,
        _ => FileType::CharacterDevice,
    }
}

fn is_node(found: &Stat, node: &Node) -> bool {
    let device = (rustix::fs::major(found.st_rdev), rustix::fs::minor(found.st_rdev));
    FileType::from_raw_mode(found.st_mode) == file_type(node)
        && (node.kind == 'p' || device == (node.major, node.minor))
}

impl Init<'_> {
    /// The folder in which `path` lies and its last component. Nodes and links mostly share one folder, so the
    /// last one is kept; no mount comes between two of them.
    fn parent<'p>(&mut self, path: &'p Path) -> Result<(Rc<OwnedFd>, &'p Path)> {
        let name =
            path.file_name().ok_or_else(|| Error::new(format!("{} has no file name", path.display())))?;
        let above = path.parent().unwrap_or(Path::new("/"));
        let folder = match &self.parent {
            Some((known, folder)) if known == above => Rc::clone(folder),
            _ => {
                let folder = Rc::new(tree::make(self.root()?, above, Kind::Directory)?);
                self.parent = Some((above.to_owned(), Rc::clone(&folder)));
                folder
            }
        };
        Ok((folder, Path::new(name)))
    }

    pub(super) fn node(&mut self, node: &Node) -> Result<()> {
        if node.bind {
            return self.bind_node(node);
        }
        let (parent, name) = self.parent(&node.path)?;
        let make = || fs::mknod_at(parent.as_fd(), name, file_type(node), node.mode, node.major, node.minor);
        match make() {
            Ok(()) => {}
            Err(error) if error.errno() == Errno::EXIST => {
                let there = fs::open_at(parent.as_fd(), name, OFlags::PATH | OFlags::NOFOLLOW, 0)?;
                if is_node(&fs::stat(there.as_fd())?, node) {
                    return Ok(());
                }
                // What the image has in its place is not the device: a link there could lead anywhere.
                fs::unlink_at(parent.as_fd(), name, false)?;
                make()?;
            }
            Err(error) if error.errno() == Errno::PERM && node.kind != 'p' => return self.bind_node(node),
            Err(error) => return Err(error.into()),
        }
        if (node.uid, node.gid) != (0, 0) {
            let made = fs::open_at(parent.as_fd(), name, OFlags::PATH | OFlags::NOFOLLOW, 0)?;
            fs::chown(made.as_fd(), node.uid, node.gid)?;
        }
        Ok(())
    }

    /// Where nodes can not be made the host's is shown, if it is the device that was asked for.
    fn bind_node(&self, node: &Node) -> Result<()> {
        let source = mount::clone_tree(CWD, &node.path, false).context(|| "the host's node")?;
        if !is_node(&fs::stat(source.as_fd())?, node) {
            return Err(Error::new(format!(
                "the host's {} is not the device {} {}:{}",
                node.path.display(),
                node.kind,
                node.major,
                node.minor
            )));
        }
        let target = tree::make(self.root()?, &node.path, Kind::File)?;
        Ok(mount::attach(source.as_fd(), target.as_fd())?)
    }

    pub(super) fn link(&mut self, target: &Path, path: &Path) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        match fs::symlink_at(target, parent.as_fd(), name) {
            Err(error) if error.errno() == Errno::EXIST => {}
            other => return Ok(other?),
        }
        let there = fs::open_at(parent.as_fd(), name, OFlags::PATH | OFlags::NOFOLLOW, 0)?;
        match FileType::from_raw_mode(fs::stat(there.as_fd())?.st_mode) {
            FileType::Symlink if fs::read_link(there.as_fd())? == target => Ok(()),
            // A mount stands there, or the image's own directory: it was asked for.
            FileType::Directory => Ok(()),
            _ => {
                fs::unlink_at(parent.as_fd(), name, false)?;
                Ok(fs::symlink_at(target, parent.as_fd(), name)?)
            }
        }
    }

    /// A terminal of the container's own devpts. The slave comes from the master (TIOCGPTPEER), not from
    /// a path; it becomes the controlling terminal and, in a new container, /dev/console.
    pub(super) fn open_terminal(&mut self, wanted: Terminal) -> Result<()> {
        let root = match &self.root {
            Some(root) => root.as_fd().try_clone_to_owned()?,
            None => fs::open(Path::new("/"), OFlags::PATH | OFlags::DIRECTORY)?,
        };
        let devpts = open_devpts(&root)?;
        let master = tty::open_master(devpts.as_fd())?;
        let slave = tty::open_slave(master.as_fd())?;
        if let Some(size) = wanted.size {
            tty::set_size(slave.as_fd(), size.height, size.width)?;
        }
        fs::chown(slave.as_fd(), wanted.owner, fs::stat(slave.as_fd())?.st_gid)?;
        if wanted.console {
            let console = tree::make(root.as_fd(), Path::new("/dev/console"), Kind::File)?;
            let shown = mount::clone_tree(slave.as_fd(), Path::new(""), false)?;
            mount::attach(shown.as_fd(), console.as_fd()).context(|| "/dev/console")?;
        }
        tty::set_controlling(slave.as_fd())?;
        self.tell(&FromInit::Terminal(master))?;
        for number in 0..3 {
            moat_linux::process::duplicate_to(slave.as_fd(), number)?;
        }
        Ok(())
    }
}

/// /dev/pts of the container, checked to be a devpts: an image could have put anything there.
fn open_devpts(root: &OwnedFd) -> Result<OwnedFd> {
    const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let devpts = fs::open_in_root(root.as_fd(), Path::new("/dev/pts"), flags, 0, Follow::Never)
        .map_err(|_| Error::new("process.terminal needs a devpts mount on /dev/pts"))?;
    if fs::filesystem_magic(devpts.as_fd())? == DEVPTS_SUPER_MAGIC {
        Ok(devpts)
    } else {
        Err(Error::new("process.terminal needs a devpts mount on /dev/pts, which is something else"))
    }
}
