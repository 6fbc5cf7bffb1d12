//! Nodes whose owner names the hosts that code comes from: what others say of a commit, and what was here before, proves
//! nothing.

use super::*;

/// A repository with one commit that is on a host that nobody named, and one on `127.0.0.1` that has nothing yet.
fn elsewhere() -> (Upstream, GitPin, Upstream, GitUrl) {
    let (other, named) = (Upstream::new(), Upstream::new());
    let pin = other.commit(&[("main.py", 0o100644, "x\n")]);
    let url = Served::start(&named, true).url.parse().expect("an address");
    (other, pin, named, url)
}

fn named_hosts() -> Policy {
    Policy { private_origins: true, hosts: ["127.0.0.1".to_owned()].into(), ..Policy::default() }
}

#[test]
fn commit_that_came_from_another_host_counts_once_a_named_host_has_it_too() {
    let (_other, pin, named, url) = elsewhere();
    let stores = Stores::new();
    let pin = GitPin { url: url.clone(), mirrors: vec![pin.url], commit: pin.commit };
    stores.fetch(&pin).expect("the mirror gives it");
    assert!(stores.store.holds(&pin));
    for pin in [&pin, &GitPin::new(url.clone(), pin.commit.clone())] {
        stores.fetch_by(pin, &named_hosts()).expect_err("the named host does not have it");
    }
    let same = named.commit(&[("main.py", 0o100644, "x\n")]);
    assert_eq!(same.commit, pin.commit);
    stores.fetch_by(&pin, &named_hosts()).expect("now it has");
    drop(named);
    let renamed = GitPin::new("https://example.org/x".parse().expect("an address"), pin.commit.clone());
    stores.fetch_by(&renamed, &named_hosts()).expect("it was fetched from a named host");
}

#[test]
fn pack_that_says_it_is_from_a_named_host_does_not_count_there() {
    let (other, pin, named, url) = elsewhere();
    let (maker, taker) = (Stores::new(), Stores::new());
    let claimed = GitPin::new(url, pin.commit);
    let store = maker.store.repository(&claimed.url, Came::Packed).expect("made");
    pack::copy_commit(&other.repository, &store, oid(&claimed.commit)).expect("copied");
    let part = Part { path: String::new(), url: claimed.url.clone(), commit: oid(&claimed.commit) };
    assert!(maker.store.mark_whole(&store, &part).expect("read"));
    let mut file = tempfile::tempfile().expect("a file");
    maker.store.pack(&claimed, &mut file).expect("packed");
    file.seek(SeekFrom::Start(0)).expect("own file");
    taker.store.unpack(&claimed, &file).expect("it is the commit");

    taker.fetch_by(&claimed, &Policy::default()).expect("is here, for whoever takes it from anywhere");
    taker
        .fetch_by(&claimed, &named_hosts())
        .expect_err("the host that it is said to be from does not have it");
    named.commit(&[("main.py", 0o100644, "x\n")]);
    taker.fetch_by(&claimed, &named_hosts()).expect("now it has");
}

#[test]
fn submodule_from_another_host_is_refused_though_it_is_here() {
    let (_other, inner, named, url) = elsewhere();
    let modules = format!("[submodule \"lib\"]\n\tpath = lib\n\turl = {}\n", inner.url);
    let files = [(".gitmodules", 0o100644, modules.as_str()), ("lib", 0o160000, inner.commit.as_str())];
    let pin = GitPin::new(url, named.commit(&files).commit);
    let stores = Stores::new();
    stores.fetch(&pin).expect("from anywhere");
    let error = stores.fetch_by(&pin, &named_hosts()).expect_err("a part is from another host");
    assert!(error.is_refusal() && error.to_string().contains(inner.url.as_str()), "{error}");
}
