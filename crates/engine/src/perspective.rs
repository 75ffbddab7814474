//! What a process sees from inside, told by a program that is put into an image: one static file that reads /proc and
//! /sys. The same image behind both walls, and the host beside them, show what a wall is.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use moat_image::facts::{Fact, collect, from_text};
use moat_model::workload::{Isolation, MountSource, MountSpec, WorkloadSpec};

use crate::{AttachSpec, Context, Engine, Error, Received, Result, StartOptions, Stream};

/// The program's place in the workload. Nothing that an image has is hidden by it.
const PROGRAM: &str = "/.moat-perspective";
/// More than all facts are.
const MAX_BYTES: usize = 64 << 10;

/// The program as a file of the host, while a workload mounts it.
struct Program(PathBuf);

impl Drop for Program {
    fn drop(&mut self) {
        // In the folder of what does not outlive the machine.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Engine {
    /// What a process of `image` sees behind a wall. The workload is removed again.
    ///
    /// Errors: as for a start.
    pub fn perspective(&self, image: &str, isolation: Isolation) -> Result<Vec<Fact>> {
        let program = self.perspective_program()?;
        let mount = MountSpec {
            source: MountSource::Bind {
                path: program.0.display().to_string(),
                create: false,
                propagation: None,
                non_recursive: true,
            },
            target: PROGRAM.to_owned(),
            read_only: true,
            idmap: None,
        };
        let spec = WorkloadSpec {
            image: image.to_owned(),
            isolation,
            entrypoint: Some(vec![PROGRAM.to_owned()]),
            command: vec!["--facts".to_owned()],
            mounts: vec![mount],
            auto_remove: true,
            ..WorkloadSpec::default()
        };
        let attach = AttachSpec { stdin: false, stdout: true, stderr: true };
        let (_, started) = self.run(spec, &StartOptions { attach: Some(attach), explain: false })?;
        let mut attached = started.attached.ok_or_else(|| Error::new("the workload has no streams"))?;
        let (mut said, mut failed) = (Vec::new(), Vec::new());
        loop {
            match attached.receive()? {
                Received::Output(stream, bytes) => {
                    let all = if stream == Stream::Stdout { &mut said } else { &mut failed };
                    let room = MAX_BYTES.saturating_sub(all.len());
                    all.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
                }
                Received::Exit(status) if status.code == 0 => break,
                Received::Exit(status) => {
                    let text = String::from_utf8_lossy(&failed);
                    let text = crate::guest::words(text.trim());
                    return Err(Error::new(format!("it ended with {}: {text}", status.code)));
                }
                Received::Closed => return Err(Error::new("its monitor is gone")),
            }
        }
        Ok(from_text(&String::from_utf8_lossy(&said)))
    }

    /// What this process sees.
    pub fn own_perspective() -> Vec<Fact> {
        collect()
    }

    fn perspective_program(&self) -> Result<Program> {
        let folder = &self.roots().run;
        crate::roots::make_folder(folder).context(|| folder.display().to_string())?;
        let program = Program(folder.join(format!("perspective-{}", std::process::id())));
        let what = || program.0.display().to_string();
        let mut options = std::fs::OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o755).open(&program.0).context(what)?;
        file.write_all(&moat_image::hello_program()?).context(what)?;
        Ok(program)
    }
}
