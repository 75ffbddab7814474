//! Any driver of the socket device, with a host that connects, sends, takes and hangs up as it likes; streams
//! are closed once and used only while they are open.
#![no_main]

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;

use libfuzzer_sys::fuzz_target;
use moat_fuzz::{Script, play};
use moat_vmm::virtio::vsock::{Host, HostEvent, StreamId, Vsock};

#[derive(Default)]
struct World {
    events: VecDeque<HostEvent>,
    /// Open streams: bytes to be read, room to be written; no bytes and no room is the end.
    streams: HashMap<StreamId, (usize, usize)>,
    next: StreamId,
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::default();
}

struct Outside;

impl Outside {
    fn with<T>(stream: StreamId, use_it: impl FnOnce(&mut (usize, usize)) -> T) -> T {
        WORLD.with_borrow_mut(|world| use_it(world.streams.get_mut(&stream).expect("an open stream")))
    }
}

impl Host for Outside {
    fn connect(&mut self, port: u32) -> io::Result<StreamId> {
        if port % 2 != 0 {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        WORLD.with_borrow_mut(|world| {
            world.next += 1;
            world.streams.insert(world.next, (100, 100));
            Ok(world.next)
        })
    }

    fn next_event(&mut self) -> Option<HostEvent> {
        WORLD.with_borrow_mut(|world| world.events.pop_front())
    }

    fn taken(&mut self, stream: StreamId, _port: u32) -> io::Result<()> {
        Self::with(stream, |_| Ok(()))
    }

    fn read(&mut self, stream: StreamId, to: &mut [u8]) -> io::Result<usize> {
        assert!(!to.is_empty());
        Self::with(stream, |(bytes, room)| match (*bytes, *room) {
            (0, 0) => Ok(0),
            (0, _) => Err(io::ErrorKind::WouldBlock.into()),
            _ => {
                let count = (*bytes).min(to.len());
                *bytes -= count;
                to[..count].fill(3);
                Ok(count)
            }
        })
    }

    fn write(&mut self, stream: StreamId, from: &[u8]) -> io::Result<usize> {
        assert!(!from.is_empty());
        Self::with(stream, |(bytes, room)| match (*bytes, *room) {
            (0, 0) => Err(io::ErrorKind::BrokenPipe.into()),
            (_, 0) => Err(io::ErrorKind::WouldBlock.into()),
            _ => {
                let count = (*room).min(from.len());
                *room -= count;
                Ok(count)
            }
        })
    }

    fn finish(&mut self, stream: StreamId) {
        Self::with(stream, |_| ());
    }

    fn close(&mut self, stream: StreamId) {
        let closed = WORLD.with_borrow_mut(|world| world.streams.remove(&stream));
        assert!(closed.is_some(), "a stream was closed twice");
    }
}

fuzz_target!(|bytes: &[u8]| {
    WORLD.with_borrow_mut(|world| *world = World::default());
    let outside = |script: &mut Script<'_>| {
        WORLD.with_borrow_mut(|world| {
            let choice = script.u8();
            if choice % 2 == 0 {
                world.next += 1;
                world.streams.insert(world.next, (script.u8().into(), script.u8().into()));
                world.events.push_back(HostEvent::Incoming { stream: world.next, port: script.u8().into() });
                return;
            }
            let stream = u64::from(script.u8() % 8);
            if let Some(state) = world.streams.get_mut(&stream) {
                *state = (script.u8().into(), script.u8().into());
            }
            // Also of a stream that is closed already.
            world.events.push_back(HostEvent::Ready(stream));
        });
    };
    play(Script(bytes), || Vsock::new(Outside, 3), outside);
});
