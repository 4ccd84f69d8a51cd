//! The messages of a WAL stream.
//!
//! Facts from PostgreSQL's manual, "Streaming Replication Protocol": numbers are big-endian, times are microseconds since 2000-01-01 UTC.

use jiff::Timestamp;

use crate::wal::Lsn;

/// 2000-01-01 00:00:00 UTC, in microseconds since 1970.
const EPOCH_MICROSECONDS: i64 = 946_684_800_000_000;

/// What a server sends within a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// `XLogData`.
    Data {
        /// Where its bytes begin.
        start: Lsn,
        /// How far the server has WAL.
        server_end: Lsn,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// Primary keepalive.
    Keepalive {
        /// How far the server has sent.
        server_end: Lsn,
        /// It wants an answer now, or it gives up.
        reply: bool,
    },
}

/// Bytes that are not a message of a WAL stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("understand the WAL stream: a message of type {kind} with {length} bytes")]
pub struct MessageError {
    kind: u8,
    length: usize,
}

/// Reads one message.
pub fn decode(message: &[u8]) -> Result<Message<'_>, MessageError> {
    let bad = || MessageError { kind: message.first().copied().unwrap_or(0), length: message.len() };
    let number = |at: usize| -> Result<u64, MessageError> {
        let bytes = message.get(at..at + 8).ok_or_else(bad)?;
        Ok(u64::from_be_bytes(bytes.try_into().map_err(|_| bad())?))
    };
    match message.first() {
        Some(b'w') => Ok(Message::Data { start: Lsn(number(1)?), server_end: Lsn(number(9)?), bytes: message.get(25..).ok_or_else(bad)? }),
        Some(b'k') => {
            let reply = *message.get(17).ok_or_else(bad)? != 0;
            Ok(Message::Keepalive { server_end: Lsn(number(1)?), reply })
        }
        _ => Err(bad()),
    }
}

/// How far a receiver is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Acknowledged {
    /// Before this byte all was written, wherever.
    pub written: Lsn,
    /// Before this byte all is durable, and the server may forget it and let commits go on (c058).
    pub flushed: Lsn,
}

/// A standby status update. Nothing was ever applied: a commit that waits for that (`remote_apply`) must not go on because of us.
pub fn status_update(at: Acknowledged, now: Timestamp, reply: bool) -> [u8; 34] {
    let mut message = [0; 34];
    message[0] = b'r';
    message[1..9].copy_from_slice(&at.written.0.to_be_bytes());
    message[9..17].copy_from_slice(&at.flushed.0.to_be_bytes());
    message[17..25].copy_from_slice(&Lsn::INVALID.0.to_be_bytes());
    message[25..33].copy_from_slice(&(now.as_microsecond() - EPOCH_MICROSECONDS).to_be_bytes());
    message[33] = u8::from(reply);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_are_read_as_the_manual_says() {
        let mut data = vec![b'w'];
        data.extend(0x0000_0001_0200_0000u64.to_be_bytes());
        data.extend(0x0000_0001_0200_0010u64.to_be_bytes());
        data.extend(0u64.to_be_bytes());
        data.extend(b"WAL");
        let (start, server_end) = (Lsn(0x1_0200_0000), Lsn(0x1_0200_0010));
        assert_eq!(decode(&data), Ok(Message::Data { start, server_end, bytes: b"WAL" }));
        let mut keepalive = vec![b'k'];
        keepalive.extend(9u64.to_be_bytes());
        keepalive.extend(0u64.to_be_bytes());
        keepalive.push(1);
        assert_eq!(decode(&keepalive), Ok(Message::Keepalive { server_end: Lsn(9), reply: true }));
        assert!(decode(&keepalive[..17]).is_err());
        assert!(decode(b"").is_err() && decode(b"x").is_err());
    }

    #[test]
    fn c058_an_update_says_what_is_durable_and_never_that_something_was_applied() {
        let at = Acknowledged { written: Lsn(7), flushed: Lsn(5) };
        let message = status_update(at, Timestamp::from_microsecond(EPOCH_MICROSECONDS + 3).unwrap(), false);
        assert_eq!(&message[..25], [b'r', 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&message[25..], [0, 0, 0, 0, 0, 0, 0, 3, 0]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = decode(&bytes);
        }
    }
}
