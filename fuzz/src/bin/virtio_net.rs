//! Any driver of the network card, with packets of any length from the other side.
#![no_main]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;

use libfuzzer_sys::fuzz_target;
use moat_fuzz::{Script, play};
use moat_linux::iov::IoBuffer;
use moat_vmm::virtio::net::{HEADER_BYTES, LONGEST_BYTES, Link, Net, NetOptions, Offloads};

thread_local! {
    static INCOMING: RefCell<VecDeque<Vec<u8>>> = const { RefCell::new(VecDeque::new()) };
}

struct Cable;

impl Link for Cable {
    fn receive(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let packet = INCOMING.with_borrow_mut(VecDeque::pop_front).ok_or(io::ErrorKind::WouldBlock)?;
        let length = packet.len().min(to.len());
        to[..length].copy_from_slice(&packet[..length]);
        Ok(length)
    }

    fn send(&mut self, parts: &[IoBuffer<'_>]) -> io::Result<()> {
        let length: usize = parts.iter().map(IoBuffer::len).sum();
        assert!(length > HEADER_BYTES && length <= LONGEST_BYTES);
        if length % 5 == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    }

    fn set_offloads(&mut self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn set_enabled(&mut self, _enabled: bool) -> io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|bytes: &[u8]| {
    INCOMING.with_borrow_mut(VecDeque::clear);
    let outside = |script: &mut Script<'_>| {
        let length = usize::from(script.u16()) % 3000;
        let packet = vec![script.u8(); length];
        INCOMING.with_borrow_mut(|incoming| {
            if incoming.len() < 8 {
                incoming.push_back(packet);
            }
        });
    };
    play(Script(bytes), || Net::new([Cable, Cable], NetOptions::default()), outside);
});
