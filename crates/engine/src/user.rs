//! Who a workload runs as: names are looked up in the image's own passwd and group files.
//!
//! These files are hostile. They are opened below the root of the workload's file system, must be regular, are read up
//! to a limit, and are parsed strictly: a line that is not of the form is no line, a number that is not a plain
//! `u32` is no number, and who is not found is an error. Nothing ever falls back to root.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use moat_linux::Errno;
use moat_linux::fs::{self, Follow};
use rustix::fs::{FileType, OFlags};

use crate::{Context, Error, Result};

/// The longest passwd or group file that is read.
const MAX_BYTES: u64 = 4 << 20;

/// The kernel's limit of supplementary groups, NGROUPS_MAX.
const MAX_GROUPS: usize = 65536;

/// Who a workload runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id inside.
    pub uid: u32,
    /// Group id inside.
    pub gid: u32,
    /// Supplementary groups, the own one among them as Docker has it.
    pub groups: Vec<u32>,
    /// Where the user is at home; `/` when the image does not say.
    pub home: String,
}

/// A line of passwd(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PasswdLine<'text> {
    /// Name.
    pub name: &'text str,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Home directory.
    pub home: &'text str,
}

/// A line of group(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupLine<'text> {
    /// Name.
    pub name: &'text str,
    /// Group id.
    pub gid: u32,
    /// Names of its members.
    pub members: Vec<&'text str>,
}

/// Looks up `user[:group]` and further groups in the files of the root file system behind `root`.
///
/// An empty `wanted` is root. Errors: there is no such user or group; a file is not a regular one, or too long.
pub fn look_up(root: BorrowedFd<'_>, wanted: &str, further: &[String]) -> Result<Identity> {
    let passwd = read(root, "/etc/passwd")?;
    let group = read(root, "/etc/group")?;
    resolve(wanted, further, &passwd, &group)
}

/// The file's text; empty where there is none.
fn read(root: BorrowedFd<'_>, path: &str) -> Result<String> {
    let what = || format!("the image's {path}");
    // Non-blocking, for the image may have put a FIFO there.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match fs::open_in_root(root, Path::new(path), flags, 0, Follow::InRoot) {
        Ok(fd) => fd,
        Err(error) if matches!(error.errno(), Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(error) => return Err(error).context(what),
    };
    if FileType::from_raw_mode(fs::stat(file.as_fd())?.st_mode) != FileType::RegularFile {
        return Err(Error::new(format!("{} is not a regular file", what())));
    }
    let mut bytes = Vec::new();
    File::from(file).take(MAX_BYTES + 1).read_to_end(&mut bytes).context(what)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::new(format!("{} has more than {MAX_BYTES} bytes", what())));
    }
    // A line that is not UTF-8 has a name that nobody can ask for.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The lines of a passwd file that are of the form.
pub fn passwd_lines(text: &str) -> impl Iterator<Item = PasswdLine<'_>> {
    text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let &[name, _, uid, gid, _, home, ..] = fields.as_slice() else { return None };
        Some(PasswdLine { name, uid: id(uid)?, gid: id(gid)?, home })
    })
}

/// The lines of a group file that are of the form.
pub fn group_lines(text: &str) -> impl Iterator<Item = GroupLine<'_>> {
    text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let (&[name, _, gid], members) = fields.split_at_checked(3)? else { return None };
        let members = members.first().into_iter().flat_map(|list| list.split(','));
        Some(GroupLine { name, gid: id(gid)?, members: members.filter(|name| !name.is_empty()).collect() })
    })
}

/// A plain number that is an id: the largest one means "no change" to the kernel.
fn id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|id| *id != u32::MAX)
}

/// Whether nobody can mean a name by it.
fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'+'))
}

/// Looks up `user[:group]` and further groups in the text of a passwd and a group file.
pub fn resolve(wanted: &str, further: &[String], passwd: &str, group: &str) -> Result<Identity> {
    let (user, own_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (wanted, None),
    };
    let found = find_user(user, passwd)?;
    let mut identity = Identity {
        uid: found.uid,
        gid: found.gid.unwrap_or(0),
        groups: Vec::new(),
        home: found.home.filter(|home| !home.is_empty()).unwrap_or("/").to_owned(),
    };
    if let Some(name) = own_group {
        identity.gid = find_group(name, group)?;
    } else if let Some(name) = found.name {
        let member = group_lines(group).filter(|line| line.members.contains(&name)).map(|line| line.gid);
        identity.groups = member.collect();
    }
    for name in further {
        identity.groups.push(find_group(name, group)?);
    }
    // The own group as well, or a program that drops its group could still use the group's files (CVE-2022-36109).
    identity.groups.push(identity.gid);
    identity.groups.sort_unstable();
    identity.groups.dedup();
    if identity.groups.len() > MAX_GROUPS {
        return Err(Error::new(format!(
            "user {wanted:?} is in {} groups, the kernel has room for {MAX_GROUPS}",
            identity.groups.len()
        )));
    }
    Ok(identity)
}

struct Found<'text> {
    uid: u32,
    gid: Option<u32>,
    name: Option<&'text str>,
    home: Option<&'text str>,
}

impl<'text> From<PasswdLine<'text>> for Found<'text> {
    fn from(line: PasswdLine<'text>) -> Self {
        Self { uid: line.uid, gid: Some(line.gid), name: Some(line.name), home: Some(line.home) }
    }
}

/// A name is looked up as a name first; a number need not be in the file.
fn find_user<'text>(user: &str, passwd: &'text str) -> Result<Found<'text>> {
    let number = if user.is_empty() { Some(0) } else { id(user) };
    if number.is_none() && is_number(user) {
        return Err(Error::new(format!("user {user:?} is not an id: a number from 0 to {}", u32::MAX - 1)));
    }
    let by_name = passwd_lines(passwd).find(|line| !user.is_empty() && line.name == user);
    let found = by_name.or_else(|| passwd_lines(passwd).find(|line| Some(line.uid) == number));
    match (found, number) {
        (Some(line), _) => Ok(line.into()),
        (None, Some(uid)) => Ok(Found { uid, gid: None, name: None, home: None }),
        (None, None) => Err(Error::new(format!("user {user:?} is not in the image's /etc/passwd"))),
    }
}

fn find_group(group: &str, text: &str) -> Result<u32> {
    let number = id(group);
    if number.is_none() && is_number(group) {
        return Err(Error::new(format!("group {group:?} is not an id: a number from 0 to {}", u32::MAX - 1)));
    }
    let by_name = group_lines(text).find(|line| !group.is_empty() && line.name == group).map(|line| line.gid);
    by_name.or(number).ok_or_else(|| Error::new(format!("group {group:?} is not in the image's /etc/group")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv/web:/bin/sh\n\
        bad:x:abc:0::/:\nwrap:x:4294967296:0::/:\nhole:x:4294967295:0::/:\nsigned:x:-1:0::/:\nshort:x:7\n\
        77:x:78:79:odd:/odd:\nnohome:x:80:80:::\n";
    const GROUP: &str =
        "root:x:0:\nadm:x:4:web,root\nwww:x:34:\nmedia:x:44:web\nbad:x:x:web\nten:x:10:nobody,\n";

    fn ids(wanted: &str, further: &[&str]) -> (u32, u32, Vec<u32>, String) {
        let further: Vec<String> = further.iter().map(|name| (*name).to_owned()).collect();
        let found = resolve(wanted, &further, PASSWD, GROUP).unwrap();
        (found.uid, found.gid, found.groups, found.home)
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(ids("", &[]), (0, 0, vec![0, 4], "/root".to_owned()));
        assert_eq!(ids("web", &[]), (33, 34, vec![4, 34, 44], "/srv/web".to_owned()));
        assert_eq!(ids("33", &[]), ids("web", &[]));
        assert_eq!(ids("web:adm", &[]), (33, 4, vec![4], "/srv/web".to_owned()));
        assert_eq!(ids("web:99", &["media", "7"]), (33, 99, vec![7, 44, 99], "/srv/web".to_owned()));
        assert_eq!(ids("1000", &[]), (1000, 0, vec![0], "/".to_owned()));
        assert_eq!(ids("1000:1000", &["media"]), (1000, 1000, vec![44, 1000], "/".to_owned()));
        assert_eq!(ids(":4", &[]), (0, 4, vec![4], "/root".to_owned()));
        assert_eq!(ids("77", &[]), (78, 79, vec![79], "/odd".to_owned()));
        assert_eq!(ids("nohome", &[]).3, "/");
        assert_eq!(ids("4294967294", &[]).0, 4_294_967_294);
    }

    #[test]
    fn who_is_unknown_is_an_error_and_never_root() {
        for bad in [
            "nobody",
            "bad",
            "wrap",
            "hole",
            "signed",
            "short",
            "-1",
            "+1",
            "4294967295",
            "4294967296",
            "99999999999999999999",
            "web:nobody",
            "web:4294967295",
            "web:-1",
            "0x10",
            " 0",
            "web:adm:x",
            "１",
        ] {
            let error = resolve(bad, &[], PASSWD, GROUP).expect_err(bad).to_string();
            assert!(error.starts_with("user ") || error.starts_with("group "), "{error}");
        }
        assert!(resolve("web", &["nobody".to_owned()], PASSWD, GROUP).is_err());
        assert_eq!(
            resolve("nobody", &[], PASSWD, GROUP).unwrap_err().to_string(),
            "user \"nobody\" is not in the image's /etc/passwd"
        );
    }

    proptest! {
        /// Whatever the files hold, root comes out only for who asked for it or has the id 0 there.
        #[test]
        fn root_is_never_an_accident(wanted in "[a-z0-9:+-]{1,14}", passwd in "([a-z0-9]{0,3}:x:[0-9-]{0,12}:[0-9]{0,3}::/:\n){0,6}") {
            if let Ok(found) = resolve(&wanted, &[], &passwd, "") && found.uid == 0 {
                let user = wanted.split(':').next().unwrap();
                let asked = user.is_empty() || user.parse() == Ok(0_u32);
                let listed = passwd_lines(&passwd).any(|line| line.name == user && line.uid == 0);
                prop_assert!(asked || listed, "{wanted:?} in {passwd:?}");
            }
        }
    }

    #[test]
    fn hostile_files() {
        let folder = std::env::temp_dir().join(format!("moat-user-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("etc")).unwrap();
        let root = fs::open(&folder, OFlags::PATH | OFlags::DIRECTORY).unwrap();
        let sentence = || look_up(root.as_fd(), "daemon", &[]).unwrap_err().to_string();
        let passwd = folder.join("etc/passwd");
        // Absent: nobody is known.
        assert_eq!(sentence(), "user \"daemon\" is not in the image's /etc/passwd");
        assert_eq!(look_up(root.as_fd(), "", &[]).unwrap().uid, 0);
        // A link leads to the image's own file, never to the host's, which has a daemon.
        std::os::unix::fs::symlink("/../../../../../../../../etc/passwd", &passwd).unwrap();
        assert!(sentence().contains("ELOOP"), "{}", sentence());
        std::fs::remove_file(&passwd).unwrap();
        std::os::unix::fs::symlink("/usr/lib/passwd", &passwd).unwrap();
        assert_eq!(sentence(), "user \"daemon\" is not in the image's /etc/passwd");
        std::fs::create_dir_all(folder.join("usr/lib")).unwrap();
        std::fs::write(folder.join("usr/lib/passwd"), "daemon:x:7:8::/:").unwrap();
        assert_eq!(look_up(root.as_fd(), "daemon", &[]).unwrap().uid, 7);
        std::fs::remove_file(&passwd).unwrap();
        // A FIFO must not make it wait.
        fs::mkfifo(&passwd, 0o644).unwrap();
        assert_eq!(sentence(), "the image's /etc/passwd is not a regular file");
        std::fs::remove_file(&passwd).unwrap();
        let long = File::create(&passwd).unwrap();
        long.set_len(MAX_BYTES + 1).unwrap();
        assert_eq!(sentence(), format!("the image's /etc/passwd has more than {MAX_BYTES} bytes"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
