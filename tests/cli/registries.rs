//! Registries: `pull`, `push`, `login`, `logout`, and `run` of what is not there yet.

use moat_tests::{Moat, Registry};

/// Pushes the image `busybox` of a house.
fn fill(moat: &Moat, name: &str) {
    moat.call(&["tag", "busybox", name]).success();
    moat.call(&["push", "--quiet", name]).success();
}

#[test]
fn push_and_pull() {
    let registry = Registry::start();
    let (moat, other) = (Moat::new(), Moat::empty());
    let (one, two) = (registry.name("team/box:1"), registry.name("team/box:2"));
    moat.call(&["tag", "busybox", &one]).success();
    let pushed = moat.call(&["push", &one]);
    let line = pushed.success().trim();
    assert!(line.starts_with(&format!("{one}: digest: sha256:")), "{pushed:?}");
    let digest = line.rsplit(' ').next().unwrap();
    moat.call(&["tag", "busybox", &two]).success();
    let repository = registry.name("team/box");
    assert_eq!(
        moat.call(&["push", "-q", "--all-tags", &repository]).success().lines().collect::<Vec<_>>(),
        [&one, &two]
    );
    assert!(moat.call(&["push", "--all-tags", &one]).failure().contains("names a tag already"));
    assert!(moat.call(&["push", &registry.name("team/box:3")]).failure().contains("team/box:3"));

    // Progress and digest are told beside the name, which alone is the output.
    let pulled = other.call(&["pull", &one]);
    assert_eq!(pulled.success(), format!("{one}\n"));
    assert!(pulled.stderr.contains(digest), "{pulled:?}");
    assert_eq!(other.call(&["pull", "--quiet", &two]).stderr, "");
    let by_digest = format!("{repository}@{digest}");
    assert_eq!(other.call(&["pull", "-q", &by_digest]).success(), format!("{by_digest}\n"));
    let ids = other.call(&["images", "-q", "--no-trunc"]);
    assert_eq!(ids.success(), moat.call(&["images", "-q", "--no-trunc", "busybox"]).success());
    let digests = other.call(&["image", "inspect", "--format", "{{json .RepoDigests}}", &one]);
    assert_eq!(digests.success(), format!("[\"{by_digest}\"]\n"));
    assert_eq!(other.run(&["--rm", &by_digest, "echo", "pulled"]).success(), "pulled\n");
    for (name, words) in [("team/box:3", "team/box:3"), ("nobody/there", "nobody/there")] {
        let missing = other.call(&["pull", &registry.name(name)]);
        assert!(missing.failure().contains(words) && missing.code == 1, "{missing:?}");
    }
    let platform = other.call(&["pull", "--platform", "linux/s390x", &one]);
    assert!(platform.failure().contains("s390x"), "{platform:?}");
    let nonsense = other.call(&["pull", "--platform", "linux/amd64/v1/x", &one]);
    assert!(nonsense.failure().contains("--platform"), "{nonsense:?}");
}

#[test]
fn run_pulls_what_is_missing() {
    let registry = Registry::start();
    let moat = Moat::new();
    let name = registry.name("box:1");
    fill(&moat, &name);
    let other = Moat::empty();
    let never = other.run(&["--pull", "never", &name, "true"]);
    assert_eq!(never.code, 125, "{never:?}");
    assert_eq!(other.run(&["--rm", &name, "echo", "ran"]).success(), "ran\n");
    // Another image has the name meanwhile.
    moat.call(&[
        "import",
        "-c",
        "ENV PATH=/bin",
        "-c",
        "LABEL new=1",
        &moat.path("busybox").display().to_string(),
        &name,
    ])
    .success();
    moat.call(&["push", "-q", &name]).success();
    let label = || other.call(&["image", "inspect", "-f", "{{.Config.Labels.new}}", &name]).stdout;
    other.run(&["--rm", &name, "true"]).success();
    assert_ne!(label(), "1\n");
    other.run(&["--rm", "--quiet", "--pull", "always", &name, "true"]).success();
    assert_eq!(label(), "1\n");
    // One of the name for another machine is no image for this one, and nobody has it.
    for pull in ["never", "missing"] {
        let wrong = other.run(&["--platform", "linux/s390x", "--pull", pull, &name, "true"]);
        assert!(wrong.code == 125 && wrong.stderr.contains("linux/s390x"), "{wrong:?}");
    }
    other.run(&["--rm", "--platform", "linux/amd64", "--pull", "never", &name, "true"]).success();
    let created = other.call(&["create", "--network", "none", "--name", "made", &registry.name("none:1")]);
    assert!(created.code == 125 && created.stderr.contains("none:1"), "{created:?}");
    assert_eq!(other.call(&["ps", "-aq"]).success(), "");
}

#[test]
fn login_and_logout() {
    let moat = Moat::new();
    let registry = Registry::closed("user", "secret");
    let name = registry.name("box:1");
    moat.call(&["tag", "busybox", &name]).success();
    assert!(moat.call(&["push", "-q", &name]).failure().contains("moat login"));
    let domain = registry.domain();
    let wrong = moat.call_with(&["login", "-u", "user", "--password-stdin", &domain], b"wrong\n");
    assert!(wrong.failure().contains(&domain), "{wrong:?}");
    assert!(!wrong.stderr.contains("wrong"), "the password is told: {wrong:?}");
    let right = moat.call_with(&["login", "-u", "user", "--password-stdin", &domain], b"secret\n");
    assert_eq!(right.success(), "Login Succeeded\n");
    // As Docker keeps it, and for nobody else to read.
    let config = moat.path("docker/config.json");
    let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    assert_eq!(kept["auths"][&domain]["auth"], "dXNlcjpzZWNyZXQ=");
    let mode = std::os::unix::fs::MetadataExt::mode(&config.metadata().unwrap());
    assert_eq!(mode & 0o777, 0o600);
    moat.call(&["push", "-q", &name]).success();
    moat.call(&["pull", "-q", &name]).success();
    let gone = moat.call(&["logout", &domain]);
    assert_eq!(gone.success(), format!("Removing login credentials for {domain}\n"));
    assert_eq!(moat.call(&["logout", &domain]).success(), format!("Not logged in to {domain}\n"));
    assert_eq!(moat.call(&["pull", "-q", &name]).code, 1);
    assert!(moat.call(&["login", "--password-stdin", &domain]).failure().contains("--username"));
    let warned = moat.call(&["login", "-u", "user", "-p", "secret", &domain]);
    assert!(
        warned.success() == "Login Succeeded\n" && warned.stderr.contains("--password-stdin"),
        "{warned:?}"
    );
}
