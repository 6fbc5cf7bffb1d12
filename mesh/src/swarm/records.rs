//! What Kademlia keeps here: which members provide which blobs, as those members said themselves.
//!
//! Bounded in every direction, so that no member fills it for all. Values, which Kademlia could carry as
//! well, are not kept: there are none in our protocol.

use std::borrow::Cow;
use std::collections::{HashMap, hash_map};
use std::iter;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::kad::store::{Error, RecordStore, Result};
use libp2p::kad::{ProviderRecord, Record, RecordKey};
use protocol::BlobName;

/// The most blobs that this process says it provides.
pub(super) const MAX_PROVIDED: usize = 16 << 10;
/// The most blobs that providers are kept of.
const MAX_KEYS: usize = 64 << 10;
/// The most providers that are kept of one blob.
const MAX_PROVIDERS: usize = 16;
/// The most records that are kept of one provider.
const MAX_OF_PROVIDER: usize = 16 << 10;
/// The most addresses that are kept of one record.
const MAX_ADDRESSES: usize = 8;
/// How often, at most, a full store is searched for records that have expired.
const PURGE: Duration = Duration::from_secs(60);

const BLAKE3: u8 = 0;
const SHA256: u8 = 1;

/// The key under which providers of a blob are found: which hash it is, and the hash.
pub(super) fn key_of(name: &BlobName) -> RecordKey {
    let (kind, hash) = match name {
        BlobName::Blake3(hash) => (BLAKE3, hash.0),
        BlobName::Sha256(sha256) => (SHA256, sha256.0),
    };
    let mut key = vec![kind];
    key.extend_from_slice(&hash);
    RecordKey::from(key)
}

fn is_key(key: &RecordKey) -> bool {
    matches!(key.as_ref(), [BLAKE3 | SHA256, hash @ ..] if hash.len() == 32)
}

/// Provider records in memory.
pub(super) struct ProviderRecords {
    ourselves: PeerId,
    provided: HashMap<RecordKey, ProviderRecord>,
    others: HashMap<RecordKey, Vec<ProviderRecord>>,
    /// How many of `others` are of each provider.
    counts: HashMap<PeerId, usize>,
    purged: Option<Instant>,
}

impl ProviderRecords {
    pub(super) fn new(ourselves: PeerId) -> Self {
        let (provided, others, counts) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { ourselves, provided, others, counts, purged: None }
    }

    fn add_other(&mut self, mut record: ProviderRecord, now: Instant) -> Result<()> {
        record.addresses.truncate(MAX_ADDRESSES);
        if let Some(records) = self.others.get_mut(&record.key) {
            if let Some(known) = records.iter_mut().find(|known| known.provider == record.provider) {
                *known = record;
                return Ok(());
            }
            records.retain(|known| {
                let is_kept = !known.is_expired(now);
                if !is_kept {
                    discount(&mut self.counts, &known.provider);
                }
                is_kept
            });
            // As many as an asker needs are known already.
            if records.len() >= MAX_PROVIDERS {
                return Ok(());
            }
        }
        let is_full = |records: &Self, provider: &PeerId| {
            let of_provider = records.counts.get(provider).copied().unwrap_or_default();
            records.others.len() >= MAX_KEYS || of_provider >= MAX_OF_PROVIDER
        };
        if is_full(self, &record.provider) {
            self.purge(now);
            if is_full(self, &record.provider) {
                return Err(Error::MaxProvidedKeys);
            }
        }
        *self.counts.entry(record.provider).or_default() += 1;
        self.others.entry(record.key.clone()).or_default().push(record);
        Ok(())
    }

    /// Lets go of what has expired.
    fn purge(&mut self, now: Instant) {
        if self.purged.is_some_and(|before| now.duration_since(before) < PURGE) {
            return;
        }
        self.purged = Some(now);
        self.others.retain(|_, records| {
            records.retain(|record| !record.is_expired(now));
            !records.is_empty()
        });
        self.counts.clear();
        for record in self.others.values().flatten() {
            *self.counts.entry(record.provider).or_default() += 1;
        }
    }
}

fn discount(counts: &mut HashMap<PeerId, usize>, provider: &PeerId) {
    if let Some(count) = counts.get_mut(provider) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(provider);
        }
    }
}

impl RecordStore for ProviderRecords {
    type RecordsIter<'a> = iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = iter::Map<
        hash_map::Values<'a, RecordKey, ProviderRecord>,
        fn(&'a ProviderRecord) -> Cow<'a, ProviderRecord>,
    >;

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _: Record) -> Result<()> {
        Err(Error::MaxRecords)
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        iter::empty()
    }

    fn add_provider(&mut self, record: ProviderRecord) -> Result<()> {
        if !is_key(&record.key) {
            return Err(Error::ValueTooLarge);
        }
        if record.provider != self.ourselves {
            return self.add_other(record, Instant::now());
        }
        if self.provided.len() >= MAX_PROVIDED && !self.provided.contains_key(&record.key) {
            return Err(Error::MaxProvidedKeys);
        }
        self.provided.insert(record.key.clone(), record);
        Ok(())
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let others = self.others.get(key).into_iter().flatten();
        self.provided.get(key).into_iter().chain(others).cloned().collect()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        self.provided.values().map(Cow::Borrowed)
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        if *provider == self.ourselves {
            self.provided.remove(key);
            return;
        }
        let Some(records) = self.others.get_mut(key) else { return };
        let before = records.len();
        records.retain(|record| record.provider != *provider);
        if records.len() < before {
            discount(&mut self.counts, provider);
        }
        if records.is_empty() {
            self.others.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::BlobHash;

    use super::*;

    fn key(number: u64) -> RecordKey {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&number.to_le_bytes());
        key_of(&BlobName::Blake3(BlobHash(hash)))
    }

    fn record(number: u64, provider: PeerId, expires: Option<Instant>) -> ProviderRecord {
        ProviderRecord { key: key(number), provider, expires, addresses: Vec::new() }
    }

    #[test]
    fn two_names_of_the_same_bytes_have_keys_of_their_own() {
        let blake3 = BlobName::Blake3(BlobHash([7; 32]));
        let sha256 = BlobName::Sha256("07".repeat(32).parse().expect("64 digits"));
        assert_ne!(key_of(&blake3), key_of(&sha256));
        assert!(is_key(&key_of(&blake3)) && is_key(&key_of(&sha256)));
        assert!(!is_key(&RecordKey::from(vec![2; 33])) && !is_key(&RecordKey::from(vec![0; 32])));
    }

    #[test]
    fn one_provider_fills_its_own_share_and_no_more() {
        let (greedy, modest) = (PeerId::random(), PeerId::random());
        let mut records = ProviderRecords::new(PeerId::random());
        let taken = (0..MAX_OF_PROVIDER as u64 + 10)
            .filter(|number| records.add_provider(record(*number, greedy, None)).is_ok());
        assert_eq!(taken.count(), MAX_OF_PROVIDER);
        assert!(records.add_provider(record(1 << 40, modest, None)).is_ok());
        records.remove_provider(&key(0), &greedy);
        assert!(records.add_provider(record(1 << 41, greedy, None)).is_ok(), "its count went down");
    }

    #[test]
    fn expired_records_make_room() {
        let mut records = ProviderRecords::new(PeerId::random());
        let start = Instant::now();
        let ends = start + Duration::from_secs(10);
        for number in 0..MAX_KEYS as u64 {
            let provider = PeerId::random();
            records.add_other(record(number, provider, Some(ends)), start).expect("there is room");
        }
        let late = record(1 << 40, PeerId::random(), None);
        assert!(records.add_other(late.clone(), start).is_err());
        assert!(records.add_other(late, ends + PURGE).is_ok());
        assert_eq!((records.others.len(), records.counts.len()), (1, 1));
    }

    #[test]
    fn what_we_provide_is_kept_apart_from_what_others_do() {
        let (ourselves, other) = (PeerId::random(), PeerId::random());
        let mut records = ProviderRecords::new(ourselves);
        records.add_provider(record(1, ourselves, None)).expect("there is room");
        records.add_provider(record(1, other, None)).expect("there is room");
        let providers: Vec<_> = records.providers(&key(1)).iter().map(|record| record.provider).collect();
        assert_eq!(providers, [ourselves, other]);
        assert_eq!(records.provided().count(), 1);
        records.remove_provider(&key(1), &ourselves);
        assert_eq!((records.provided().count(), records.providers(&key(1)).len()), (0, 1));
        assert!(records.put(Record::new(key(1), vec![1])).is_err(), "values are not kept");
    }
}
