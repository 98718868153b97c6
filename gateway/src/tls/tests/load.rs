//! Files of certificates and keys that are not as they have to be.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, SystemTime};

use super::super::test_pki::{Authority, load};
use super::super::{Doubt, Identity, KeyFiles};

#[track_caller]
fn assert_refused(files: &KeyFiles, problem: &str, advice: &str) {
    let error = load(files).unwrap_err();
    assert!(error.problem.contains(problem), "{error}");
    assert!(error.advice.contains(advice), "{error}");
}

#[test]
fn a_certificate_with_its_key_is_good() {
    let authority = Authority::new();
    let identity = authority.identity("mx", &["MX.Example", "*.isp.example"]);
    assert_eq!(identity.names(), ["mx.example", "*.isp.example"]);
    assert_eq!(identity.doubts(), []);
}

#[test]
fn both_may_be_in_one_file() {
    let authority = Authority::new();
    let files = authority.issue("mx", &["mx.example"]);
    let both = authority.path("both.pem");
    let text = [&files.key, &files.certificate].map(|path| fs::read_to_string(path).unwrap());
    fs::write(&both, text.concat()).unwrap();
    fs::set_permissions(&both, fs::Permissions::from_mode(0o600)).unwrap();
    let files = KeyFiles {
        certificate: both.clone(),
        key: both,
    };
    assert_eq!(load(&files).unwrap().doubts(), []);
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_what_to_do() {
    let authority = Authority::new();
    let good = authority.issue("mx", &["mx.example"]);
    let other = authority.issue("other", &["other.example"]);
    let with_key = |key| KeyFiles {
        key,
        ..good.clone()
    };
    let with_certificate = |certificate| KeyFiles {
        certificate,
        ..good.clone()
    };
    assert_refused(&with_key(other.key.clone()), "is not the key of", "first");
    assert_refused(&with_key(authority.path("none")), "cannot be read", "path");
    assert_refused(
        &with_key(good.certificate.clone()),
        "no private key",
        "BEGIN PRIVATE KEY",
    );
    assert_refused(
        &with_certificate(good.key.clone()),
        "no certificate",
        "BEGIN CERTIFICATE",
    );
    assert_refused(
        &with_certificate("/dev/null".into()),
        "regular file",
        "path",
    );
    let encrypted = authority.path("encrypted.key");
    fs::write(
        &encrypted,
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    )
    .unwrap();
    assert_refused(&with_key(encrypted), "passphrase", "openssl pkey");
    let cut = authority.path("cut.pem");
    let text = fs::read_to_string(&good.certificate).unwrap();
    fs::write(&cut, &text[..text.len() / 2]).unwrap();
    assert_refused(&with_certificate(cut), "not valid PEM", "copy");
    let garbage = authority.path("garbage.pem");
    fs::write(
        &garbage,
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    assert_refused(&with_certificate(garbage), "not valid X.509", "issued");
}

#[test]
fn a_certificate_that_does_not_help_is_doubtful_but_used() {
    let authority = Authority::new();
    let expired = authority.issue_expired("expired", &["mx.example"]);
    let doubts = load(&expired).unwrap().doubts().to_vec();
    assert_eq!(doubts, [Doubt::Expired(expired.certificate)]);
    let nameless = authority.issue("nameless", &[]);
    let doubts = load(&nameless).unwrap().doubts().to_vec();
    assert_eq!(doubts, [Doubt::NoNames(nameless.certificate)]);
    let open = authority.issue("open", &["mx.example"]);
    fs::set_permissions(&open.key, fs::Permissions::from_mode(0o644)).unwrap();
    let doubts = load(&open).unwrap().doubts().to_vec();
    assert_eq!(doubts, [Doubt::KeyReadableByAll(open.key)]);
}

#[test]
fn validity_is_compared_with_the_time_that_is_given() {
    let authority = Authority::new();
    let files = authority.issue_expired("mx", &["mx.example"]);
    // 2020-01-01 and 2021-01-01 00:00 UTC.
    let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(1_577_836_800);
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1_609_459_200);
    let day = Duration::from_secs(24 * 60 * 60);
    let at = |now| Identity::load(&files, now).unwrap().doubts().to_vec();
    let path = || files.certificate.clone();
    assert_eq!(at(begin - day), [Doubt::NotYetValid(path())]);
    assert_eq!(at(begin + day), []);
    assert_eq!(at(end - day), [Doubt::ExpiresSoon(path())]);
    assert_eq!(at(end + day), [Doubt::Expired(path())]);
}
