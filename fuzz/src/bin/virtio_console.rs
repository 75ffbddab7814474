//! Any driver of the console, over terminals that take and give as they like.
#![no_main]

use std::cell::Cell;
use std::io;

use libfuzzer_sys::fuzz_target;
use moat_fuzz::{Script, play};
use moat_vmm::device::Stream;
use moat_vmm::virtio::console::{Console, PortOptions};

thread_local! {
    /// How many bytes may be read, and written.
    static MOOD: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

struct Moody;

impl Stream for Moody {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let (left, room) = MOOD.get();
        let count = left.min(to.len());
        if count == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        to[..count].fill(9);
        MOOD.set((left - count, room));
        Ok(count)
    }

    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let (left, room) = MOOD.get();
        let count = room.min(from.len());
        if count == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        MOOD.set((left, room - count));
        Ok(count)
    }

    fn size(&self) -> Option<(u16, u16)> {
        Some((80, 25))
    }
}

fuzz_target!(|bytes: &[u8]| {
    MOOD.set((0, 0));
    let port = |name: &str, console| (Moody, PortOptions { name: name.to_owned(), console });
    let device = || Console::new([port("", true), port("second", false), port("third", true)]);
    play(Script(bytes), device, |script| MOOD.set((script.u8().into(), script.u8().into())));
});
