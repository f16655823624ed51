//! Owns moving bytes through one accepted socket, plain or TLS, without ever waiting.
//!
//! Never: blocks (what cannot be done now is `WouldBlock`), knows HTTP. Called by
//! `connection`, `stream` and `hub`.

use rustix::buffer::spare_capacity;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};
use rustls::ServerConnection;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// One connection's bytes.
#[derive(Debug)]
pub(super) struct Transport {
    socket: TcpStream,
    tls: Option<Box<ServerConnection>>,
}

impl Transport {
    /// Over a socket that does not block.
    pub(super) fn plain(socket: TcpStream) -> Transport {
        Transport { socket, tls: None }
    }

    /// TLS over a socket that does not block.
    pub(super) fn tls(
        socket: TcpStream,
        config: Arc<rustls::ServerConfig>,
    ) -> Result<Transport, rustls::Error> {
        Ok(Transport { socket, tls: Some(Box::new(ServerConnection::new(config)?)) })
    }

    /// Whether it speaks TLS.
    pub(super) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether the TLS handshake is not over.
    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// Whether bytes wait for room in the socket.
    pub(super) fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Appends what has arrived to the spare capacity of `target`; 0 is the peer's end.
    pub(super) fn read(&mut self, target: &mut Vec<u8>) -> io::Result<usize> {
        match &mut self.tls {
            None => {
                let (count, _) =
                    rustix::net::recv(&self.socket, spare_capacity(target), RecvFlags::empty())?;
                Ok(count)
            }
            Some(tls) => read_tls(&self.socket, tls, target),
        }
    }

    /// Takes some of `head` and, when all of `head` is taken, of `body`; says how many bytes.
    /// What was taken may wait inside until `flush`.
    pub(super) fn write(&mut self, head: &[u8], body: &[u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => {
                let parts = [IoSlice::new(head), IoSlice::new(body)];
                let parts = if head.is_empty() { &parts[1..] } else { &parts[..] };
                let mut nothing = SendAncillaryBuffer::default();
                let flags = SendFlags::NOSIGNAL;
                Ok(rustix::net::sendmsg(&self.socket, parts, &mut nothing, flags)?)
            }
            Some(tls) => {
                let part = if head.is_empty() { body } else { head };
                loop {
                    let count = tls.writer().write(part)?;
                    if count > 0 || part.is_empty() {
                        return Ok(count);
                    }
                    send_tls(&self.socket, tls)?;
                }
            }
        }
    }

    /// Hands everything taken to the kernel.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            None => Ok(()),
            Some(tls) => send_tls(&self.socket, tls),
        }
    }

    /// Says that nothing more will be sent. Best effort: the peer may be gone.
    pub(super) fn finish(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _ = send_tls(&self.socket, tls);
        }
        let _ = self.socket.shutdown(Shutdown::Write);
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn send_tls(mut socket: &TcpStream, tls: &mut ServerConnection) -> io::Result<()> {
    while tls.wants_write() {
        if tls.write_tls(&mut socket)? == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
    }
    Ok(())
}

/// One read of the socket and everything that can be decrypted with it, so that nothing
/// stays inside that the poller cannot see.
fn read_tls(
    mut socket: &TcpStream,
    tls: &mut ServerConnection,
    target: &mut Vec<u8>,
) -> io::Result<usize> {
    let arrived = tls.read_tls(&mut socket)?;
    let state = tls.process_new_packets();
    // Handshake messages and alerts; what does not fit now is flushed later.
    match send_tls(socket, tls) {
        Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let state = state.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
    let plaintext_bytes = state.plaintext_bytes_to_read();
    if plaintext_bytes > 0 {
        let mut plaintext = tls.reader().take(plaintext_bytes as u64);
        return plaintext.read_to_end(target);
    }
    if arrived == 0 || state.peer_has_closed() {
        return Ok(0);
    }
    Err(ErrorKind::WouldBlock.into())
}
