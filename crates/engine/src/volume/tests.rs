use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use moat_linux::{fs, xattr};
use moat_model::workload::WorkloadSpec;
use rustix::fs::OFlags;

use super::*;
use crate::oci::{IdMaps, ReadyMount, RunConfig, Source, user_namespace};

/// A folder of a test's own.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("moat-volume-{name}-{}", std::process::id()));
        std::fs::create_dir_all(path.join("root")).unwrap();
        Self(path)
    }

    fn volumes(&self) -> Volumes {
        Volumes::new(self.0.join("volumes"))
    }

    fn root(&self, below: &str) -> PathBuf {
        self.0.join("root").join(below)
    }

    /// Readies mounts as for a start.
    fn ready(
        &self,
        mounts: &[MountSpec],
        first_start: bool,
        maps: Option<&IdMaps>,
    ) -> Result<Vec<ReadyMount>> {
        let root = fs::open(&self.root(""), OFlags::PATH | OFlags::DIRECTORY).unwrap();
        let parts = self.0.join("parts");
        ready(&self.volumes(), mounts, &Looking { root: root.as_fd(), parts: &parts, first_start, maps })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn named(name: &str) -> VolumeSpec {
    VolumeSpec { name: Some(name.to_owned()), ..VolumeSpec::default() }
}

fn volume(name: Option<&str>, target: &str) -> MountSpec {
    let source = MountSource::Volume {
        name: name.map(str::to_owned),
        no_copy: false,
        subpath: None,
        options: BTreeMap::new(),
        labels: BTreeMap::new(),
    };
    MountSpec { source, target: target.to_owned(), read_only: false, idmap: None }
}

fn bind(path: &str, target: &str, create: bool) -> MountSpec {
    let source = MountSource::Bind { path: path.to_owned(), create, propagation: None, non_recursive: false };
    MountSpec { source, target: target.to_owned(), read_only: false, idmap: None }
}

#[test]
fn made_found_and_removed() {
    let place = Place::new("life");
    let volumes = place.volumes();
    assert_eq!(volumes.list().unwrap(), []);
    let made = volumes.create(&named("data")).unwrap();
    assert_eq!(std::fs::metadata(made.path().unwrap()).unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!(volumes.create(&named("data")).unwrap(), made, "one that is there is as good");
    let anonymous = volumes.create(&VolumeSpec::default()).unwrap();
    assert_eq!(anonymous.name.len(), 64);
    assert_eq!(volumes.list().unwrap().len(), 2);
    assert_eq!(volumes.find("data").unwrap(), made);

    made.hold("0123456789abcdef").unwrap();
    let error = volumes.remove("data").unwrap_err();
    assert_eq!(error.to_string(), "volume data is in use by workload 0123456789ab");
    assert_eq!(error.kind(), crate::ErrorKind::Conflict);
    assert_eq!(volumes.prune(false, &|_| true).unwrap().len(), 1, "the anonymous one");
    assert_eq!(volumes.prune(true, &|_| true).unwrap(), []);
    volumes.release(&[volume(Some("data"), "/data")], "0123456789abcdef", true).unwrap();
    std::fs::write(made.path().unwrap().join("x"), [7; 5000]).unwrap();
    assert!(volumes.remove("data").unwrap().bytes >= 5000);
    assert_eq!(volumes.find("data").unwrap_err().kind(), crate::ErrorKind::NotFound);
    assert_eq!(file::names_in(&place.0.join("volumes")).unwrap(), Vec::<String>::new());
}

#[test]
fn names_stay_within_their_folder() {
    let place = Place::new("names");
    for bad in ["", "a", ".x", "../x", "a/b", "-x", "a b", "ä1", &"x".repeat(201)] {
        assert!(place.volumes().create(&named(bad)).is_err(), "{bad}");
        assert!(place.volumes().find(bad).is_err(), "{bad}");
    }
    let error = place.volumes().create(&named("a/b")).unwrap_err();
    assert_eq!(error.hint_text(), Some("a path of the host begins with a slash"));
}

#[test]
fn options_show_a_folder_of_the_host_or_are_refused() {
    let place = Place::new("options");
    let with = |pairs: &[(&str, &str)]| {
        let options = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        place.volumes().create(&VolumeSpec { options, ..named("host") })
    };
    let sentence = |pairs: &[(&str, &str)]| with(pairs).unwrap_err().to_string();
    assert_eq!(sentence(&[("type", "nfs")]), "volume host: option type=nfs is not supported");
    assert_eq!(sentence(&[("o", "bind")]), "volume host: a folder of the host needs both o=bind and device");
    assert_eq!(sentence(&[("color", "red")]), "volume host: option color is not known");
    assert!(sentence(&[("o", "bind"), ("device", "x")]).contains("not an absolute path"));
    let made = with(&[("type", "none"), ("o", "bind"), ("device", "/srv")]).unwrap();
    assert_eq!(made.path().unwrap(), Path::new("/srv"));
    assert_eq!(
        sentence(&[("o", "bind"), ("device", "/opt")]),
        "volume host exists already, with other options"
    );
}

#[test]
fn the_user_wins_over_others_and_both_over_the_image() {
    let place = Place::new("resolve");
    let volumes = place.volumes();
    let others = |name: &str| {
        assert_eq!(name, "web");
        let memory = MountSource::Tmpfs { size_bytes: None, mode: None, options: Vec::new() };
        let memory = MountSpec { source: memory, ..volume(None, "/tmp") };
        Ok(vec![volume(Some("other"), "/a"), bind("/srv", "/b", false), memory])
    };
    let spec = WorkloadSpec {
        mounts: vec![volume(Some("own"), "/a/"), volume(None, "/c")],
        volumes_from: vec!["web:ro".to_owned()],
        ..WorkloadSpec::default()
    };
    let image = RunConfig {
        volumes: ["/a", "/b", "/c/.", "/d"].map(str::to_owned).into_iter().collect(),
        ..RunConfig::default()
    };
    let mounts = resolve(&volumes, "id", &spec, &image, &others).unwrap();
    let shown: Vec<(&str, &str, bool)> = mounts
        .iter()
        .map(|mount| (mount.target.as_str(), volume_name(mount).unwrap_or("bind"), mount.read_only))
        .map(|(target, name, read_only)| {
            (target, if name.len() == 64 { "anonymous" } else { name }, read_only)
        })
        .collect();
    assert_eq!(
        shown,
        [("/a/", "own", false), ("/c", "anonymous", false), ("/b", "bind", true), ("/d", "anonymous", false)]
    );
    assert_eq!(volumes.find("own").unwrap().users().unwrap(), ["id"]);
    assert_eq!(volumes.list().unwrap().len(), 3);
    volumes.release(&mounts, "id", true).unwrap();
    assert_eq!(volumes.list().unwrap().len(), 1, "the named one stays");
}

#[test]
fn a_wish_that_fails_holds_nothing() {
    let place = Place::new("fails");
    let volumes = place.volumes();
    let none = |_: &str| Err(Error::not_found("workload \"web\" does not exist"));
    let fails = |mounts: Vec<MountSpec>, from: &[&str]| {
        let volumes_from = from.iter().map(|text| (*text).to_owned()).collect();
        let spec = WorkloadSpec { mounts, volumes_from, ..WorkloadSpec::default() };
        let error = resolve(&volumes, "id", &spec, &RunConfig::default(), &none).unwrap_err();
        for volume in volumes.list().unwrap() {
            assert_eq!((volume.users().unwrap(), volume.state.anonymous), (Vec::new(), false));
        }
        error.to_string()
    };
    assert!(
        fails(vec![volume(None, "/a"), volume(Some("b/d"), "/b")], &[]).starts_with("volume name \"b/d\"")
    );
    assert_eq!(fails(vec![volume(None, "/a"), volume(None, "/a/")], &[]), "two mounts go to /a/");
    assert_eq!(fails(Vec::new(), &["web"]), "workload \"web\" does not exist");
    assert_eq!(fails(Vec::new(), &["web:rx"]), "--volumes-from web:rx: \"rx\" is neither ro nor rw");
    assert!(fails(vec![volume(None, "a")], &[]).contains("not an absolute path"));
}

/// What the image of these tests has at /data.
fn furnish(place: &Place) {
    let data = place.root("data");
    std::fs::create_dir_all(data.join("sub")).unwrap();
    std::fs::write(data.join("sub/file"), "content").unwrap();
    std::fs::hard_link(data.join("sub/file"), data.join("second")).unwrap();
    symlink("/etc/passwd", data.join("link")).unwrap();
    fs::mkfifo(&data.join("pipe"), 0o640).unwrap();
    std::os::unix::fs::lchown(data.join("sub/file"), Some(5), Some(6)).unwrap();
    std::os::unix::fs::lchown(data.join("link"), Some(7), Some(8)).unwrap();
    std::os::unix::fs::lchown(&data, Some(9), Some(10)).unwrap();
    std::fs::set_permissions(data.join("sub/file"), PermissionsExt::from_mode(0o4711)).unwrap();
    std::fs::set_permissions(&data, PermissionsExt::from_mode(0o1770)).unwrap();
    let file = fs::open(&data.join("sub/file"), OFlags::PATH).unwrap();
    xattr::set(file.as_fd(), c"user.note", b"kept").unwrap();
    fs::set_times(file.as_fd(), (1, 2), (3, 4)).unwrap();
}

/// Type and mode, owner, group, link target, seconds.
fn describe(path: &Path) -> (u32, u32, u32, String, i64) {
    let found = std::fs::symlink_metadata(path).unwrap();
    let target = std::fs::read_link(path).map(|target| target.display().to_string()).unwrap_or_default();
    (found.mode(), found.uid(), found.gid(), target, found.mtime())
}

#[test]
fn an_empty_volume_gets_what_the_image_has() {
    let place = Place::new("fill");
    furnish(&place);
    let volumes = place.volumes();
    let data = volumes.create(&named("data")).unwrap().path().unwrap();
    let mounts = [volume(Some("data"), "/data")];
    place.ready(&mounts, false, None).unwrap();
    assert!(!data.join("sub").exists(), "only the first start fills");
    place.ready(&mounts, true, None).unwrap();
    for name in ["", "sub", "sub/file", "second", "link", "pipe"] {
        assert_eq!(describe(&data.join(name)), describe(&place.root("data").join(name)), "{name}");
    }
    assert_eq!(std::fs::read(data.join("sub/file")).unwrap(), b"content");
    assert_eq!(std::fs::metadata(data.join("second")).unwrap().nlink(), 2);
    let file = fs::open(&data.join("sub/file"), OFlags::PATH).unwrap();
    assert_eq!(xattr::get(file.as_fd(), c"user.note").unwrap(), Some(b"kept".to_vec()));

    std::fs::remove_file(data.join("second")).unwrap();
    place.ready(&mounts, true, None).unwrap();
    assert!(!data.join("second").exists(), "what is not empty is left alone");
    std::fs::write(place.0.join("volumes/data/filling"), "").unwrap();
    place.ready(&mounts, true, None).unwrap();
    assert!(data.join("second").exists(), "a copy that was cut short begins again");
    assert!(!place.0.join("volumes/data/filling").exists());
}

#[test]
fn a_volume_keeps_the_ids_of_the_inside() {
    let place = Place::new("ids");
    furnish(&place);
    std::os::unix::fs::lchown(place.root("data/sub/file"), Some(100_005), Some(100_006)).unwrap();
    let data = place.volumes().create(&named("data")).unwrap().path().unwrap();
    let maps = user_namespace(Some("0:100000:65536"), None).unwrap();
    let ready = place.ready(&[volume(Some("data"), "/data")], true, maps.as_ref()).unwrap();
    let (_, uid, gid, ..) = describe(&data.join("sub/file"));
    assert_eq!((uid, gid), (5, 6));
    assert_eq!(ready[0].idmap, Some(IdMaps::default()), "and is mounted with its ids mapped");
}

#[test]
fn a_part_is_asked_for_by_a_relative_path() {
    let place = Place::new("part");
    place.volumes().create(&named("data")).unwrap();
    for (below, words) in [("../x", "without \"..\""), ("/etc", "must be relative"), ("none", "ENOENT")] {
        let mut mount = volume(Some("data"), "/data");
        if let MountSource::Volume { subpath, .. } = &mut mount.source {
            *subpath = Some(below.to_owned());
        }
        let error = place.ready(&[mount], true, None).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn binds_are_there_or_are_made_as_folders() {
    let place = Place::new("binds");
    let missing = place.0.join("made/deep").display().to_string();
    let error = place.ready(&[bind(&missing, "/x", false)], true, None).unwrap_err();
    assert_eq!(error.to_string(), format!("mount /x: the source {missing} does not exist"));
    let ready = place.ready(&[bind(&missing, "/x", true)], true, None).unwrap();
    assert!(Path::new(&missing).is_dir());
    let Source::Bind { recursive, propagation, .. } = &ready[0].source else { panic!("no bind") };
    assert_eq!((*recursive, propagation.as_str()), (true, "rprivate"));
    assert!(place.ready(&[bind("x", "/x", true)], true, None).is_err());
    let mut odd = bind(&missing, "/x", false);
    if let MountSource::Bind { propagation, .. } = &mut odd.source {
        *propagation = Some("wide".to_owned());
    }
    assert!(place.ready(&[odd], true, None).unwrap_err().to_string().contains("\"wide\" is not known"));
}

#[test]
fn what_a_kill_leaves_is_found_and_removed() {
    let place = Place::new("check");
    let volumes = place.volumes();
    volumes.create(&named("data")).unwrap().hold("gone").unwrap();
    volumes.find("data").unwrap().hold("here").unwrap();
    for half in [".new-x-1", ".gone-y-2"] {
        std::fs::create_dir(place.0.join("volumes").join(half)).unwrap();
    }
    let exists = |id: &str| id == "here";
    assert_eq!(volumes.check(false, &exists).unwrap().len(), 3);
    assert_eq!(volumes.check(true, &exists).unwrap().len(), 3);
    assert_eq!(volumes.check(false, &exists).unwrap(), []);
    assert_eq!(volumes.find("data").unwrap().users().unwrap(), ["here"]);
}

/// Many take, give up and remove one volume at once: nobody fails but by its being in use or gone.
#[test]
fn taken_and_given_up_side_by_side() {
    let place = Place::new("race");
    let volumes = place.volumes();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let volumes = &volumes;
            scope.spawn(move || {
                let id = format!("w{number}");
                let spec =
                    WorkloadSpec { mounts: vec![volume(Some("shared"), "/s")], ..WorkloadSpec::default() };
                for turn in 0..50 {
                    let mounts =
                        resolve(volumes, &id, &spec, &RunConfig::default(), &|_| Ok(Vec::new())).unwrap();
                    volumes.release(&mounts, &id, true).unwrap();
                    if turn % 5 == 0
                        && let Err(error) = volumes.remove("shared")
                    {
                        assert_ne!(error.kind(), crate::ErrorKind::Failed, "{error}");
                    }
                }
            });
        }
    });
    let left = volumes.list().unwrap();
    assert!(left.iter().all(|volume| volume.users().unwrap().is_empty()));
    assert_eq!(volumes.check(false, &|_| false).unwrap(), []);
}
