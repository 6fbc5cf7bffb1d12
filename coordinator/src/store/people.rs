//! Who may come in: members, tickets by the hash of their secret, keys by the hash of theirs.
//!
//! Not here: whether somebody is let in; `admission` decides.

use std::collections::BTreeMap;

use protocol::PeerId;
use protocol::membership::Role;

use super::{Store, StoreError, database, from_json, to_json};
use crate::view::KeyView;

/// A member whom this coordinator admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Who.
    pub peer: PeerId,
    /// As what.
    pub role: Role,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The hash of the ticket's secret by which it came.
    pub ticket: [u8; 32],
    /// Whether it was excluded.
    pub revoked: bool,
}

/// A ticket, without its secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredTicket {
    /// The hash of its secret.
    pub secret: [u8; 32],
    /// Until when it can be used, in seconds since 1970.
    pub expires: u64,
    /// How many more machines may use it.
    pub uses: u32,
}

/// What came of using a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TicketUse {
    /// It was good, and the use is counted.
    Good,
    /// There is none with that secret.
    Unknown,
    /// It is too old.
    Expired,
    /// It was for fewer.
    UsedUp,
}

impl Store {
    /// Keeps a ticket.
    pub async fn insert_ticket(&self, ticket: StoredTicket) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO tickets VALUES (?, ?, ?)")
            .bind(&ticket.secret[..])
            .bind(ticket.expires.cast_signed())
            .bind(i64::from(ticket.uses))
            .execute(&self.pool)
            .await
            .map_err(database("keep a ticket"))?;
        Ok(())
    }

    /// Admits a member by a ticket: the use is counted and the member written in one transaction. A
    /// member that comes again with the same ticket, because an answer was lost, uses it only once.
    pub async fn admit(&self, member: &Admitted, now: u64) -> Result<TicketUse, StoreError> {
        let doing = "admit a member";
        let mut transaction = self.begin().await?;
        let found: Option<(i64, i64)> = sqlx::query_as("SELECT expires, uses FROM tickets WHERE secret = ?")
            .bind(&member.ticket[..])
            .fetch_optional(&mut *transaction)
            .await
            .map_err(database(doing))?;
        let Some((expires, uses)) = found else { return Ok(TicketUse::Unknown) };
        if now >= expires.cast_unsigned() {
            return Ok(TicketUse::Expired);
        }
        let known: Option<(Vec<u8>,)> = sqlx::query_as("SELECT ticket FROM members WHERE peer = ?")
            .bind(member.peer.to_string())
            .fetch_optional(&mut *transaction)
            .await
            .map_err(database(doing))?;
        if known.is_none_or(|(ticket,)| ticket != member.ticket) {
            if uses < 1 {
                return Ok(TicketUse::UsedUp);
            }
            sqlx::query("UPDATE tickets SET uses = uses - 1 WHERE secret = ?")
                .bind(&member.ticket[..])
                .execute(&mut *transaction)
                .await
                .map_err(database(doing))?;
        }
        sqlx::query(
            "INSERT INTO members (peer, role, labels, ticket) VALUES (?, ?, ?, ?)
             ON CONFLICT (peer) DO UPDATE SET role = excluded.role, labels = excluded.labels, ticket = excluded.ticket",
        )
        .bind(member.peer.to_string())
        .bind(to_json(&member.role, "a role")?)
        .bind(to_json(&member.labels, "labels")?)
        .bind(&member.ticket[..])
        .execute(&mut *transaction)
        .await
        .map_err(database(doing))?;
        transaction.commit().await.map_err(database(doing))?;
        Ok(TicketUse::Good)
    }

    /// A member, also an excluded one.
    pub async fn member(&self, peer: PeerId) -> Result<Option<Admitted>, StoreError> {
        let row: Option<(String, String, Vec<u8>, bool)> =
            sqlx::query_as("SELECT role, labels, ticket, revoked FROM members WHERE peer = ?")
                .bind(peer.to_string())
                .fetch_optional(&self.pool)
                .await
                .map_err(database("look for a member"))?;
        let Some((role, labels, ticket, revoked)) = row else { return Ok(None) };
        let (role, labels) = (from_json(&role, "a role")?, from_json(&labels, "labels")?);
        Ok(Some(Admitted { peer, role, labels, ticket: ticket.try_into().unwrap_or_default(), revoked }))
    }

    /// Excludes a member.
    pub async fn revoke(&self, peer: PeerId) -> Result<(), StoreError> {
        sqlx::query("UPDATE members SET revoked = 1 WHERE peer = ?")
            .bind(peer.to_string())
            .execute(&self.pool)
            .await
            .map_err(database("exclude a member"))?;
        Ok(())
    }

    /// Keeps a key by the hash of its secret.
    pub async fn insert_key(&self, secret: [u8; 32], key: &KeyView) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO keys VALUES (?, ?, ?)")
            .bind(&secret[..])
            .bind(&key.name)
            .bind(to_json(&key.scope, "a scope")?)
            .execute(&self.pool)
            .await
            .map_err(database("keep a key"))?;
        Ok(())
    }

    /// All keys, by the hashes of their secrets.
    pub async fn keys(&self) -> Result<Vec<([u8; 32], KeyView)>, StoreError> {
        let rows: Vec<(Vec<u8>, String, String)> = sqlx::query_as("SELECT secret, name, scope FROM keys")
            .fetch_all(&self.pool)
            .await
            .map_err(database("read its keys"))?;
        let key = |(secret, name, scope): (Vec<u8>, String, String)| {
            let view = KeyView { name, scope: from_json(&scope, "a scope")? };
            Ok((secret.try_into().unwrap_or_default(), view))
        };
        rows.into_iter().map(key).collect()
    }
}
