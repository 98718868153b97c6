//! The lines of a user file, good and bad, and what is told of them.

use super::*;

const HASH: &str = "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0$\
    U4mvDVC1ZVFlcTkq0rYrwqCpp0r3ADM3QkLVG0vu0wM";

fn faults(text: &str) -> Vec<String> {
    let faults = Users::parse(text).expect_err("it is bad");
    faults.iter().map(ToString::to_string).collect()
}

#[test]
fn a_file_is_read_with_its_comments_and_senders() {
    let text = format!(
        "# comment\r\n\nsecret=AAAAAAAAAAAAAAAAAAAAAA==\n\
         Alice@ISP.example password={HASH}\n  bob\tsenders=b@isp.example,shop.example \
         password={HASH}"
    );
    let users = Users::parse(&text).unwrap();
    let all: Vec<_> = users
        .all()
        .iter()
        .map(|user| (&*user.name, user.line))
        .collect();
    assert_eq!(all, [("alice@isp.example", 4), ("bob", 5)]);
    assert!(users.get("ALICE@isp.example").is_some() && users.get("carol").is_none());
    let may = |name: &str, address: &str| {
        let user = users.get(name).unwrap();
        user.may_send_as(&Mailbox::parse(address).unwrap())
    };
    assert!(may("bob", "any@shop.example") && may("bob", "B@isp.example"));
    assert!(!may("bob", "alice@isp.example"));
    assert!(may("alice@isp.example", "any@where.example"));
    assert!(!users.have_scram());
}

#[test]
fn every_fault_is_told_with_its_line_and_without_a_hash() {
    let text = format!(
        "alice password={HASH}\n\
         bob\n\
         carol password=hunter2\n\
         Alice password={HASH}\n\
         dave password={HASH} password={HASH}\n\
         erin password={HASH} sender=a@b.example\n\
         a,b password={HASH}\n\
         frank password={HASH} senders=*\n\
         grace password={HASH} scram=SCRAM-SHA-256$1:c2FsdHNhbHQ=$AA==:AA==\n\
         secret=c2hvcnQ=\n"
    );
    let found = faults(&text);
    let parts = [
        "line 2: bob has no password=",
        "line 3: the password is no argon2 hash",
        "line 4: alice is in line 1 already",
        "line 5: dave has two password=",
        "line 6: after the name come",
        "line 7: a name has no",
        "line 8: bad sender `*`",
        "line 9: SCRAM keys have from 4096",
        "line 10: the secret is at least 16 octets",
    ];
    assert_eq!(found.len(), parts.len(), "{found:#?}");
    for (fault, part) in found.iter().zip(parts) {
        assert!(fault.contains(part), "{fault}: {part}");
        assert!(
            !fault.contains("hunter2") && !fault.contains("U4mv"),
            "{fault}"
        );
    }
}

#[test]
fn an_unknown_user_costs_what_most_users_cost() {
    let dear = HASH.replace("m=64,t=1", "m=128,t=3");
    let users = format!("a password={HASH}\nb password={dear}\nc password={dear}\n");
    let users = Users::parse(&users).unwrap();
    assert_eq!(users.0.decoy.cost(), (128, 3, 1));
    assert_eq!(Users::parse("").unwrap().0.decoy.cost(), (19_456, 2, 1));
}

#[test]
fn salts_of_unknown_users_stay_with_a_secret_and_differ_without_one() {
    let salts = |text: &str| {
        let users = Users::parse(text).unwrap();
        users.0.secret.to_vec()
    };
    let secret = "secret=AAAAAAAAAAAAAAAAAAAAAA==\n";
    assert_eq!(salts(secret), salts(secret));
    assert_ne!(salts(""), salts(""));
}

#[test]
fn a_file_that_is_not_there_or_no_text_is_an_error() {
    let error = Users::read(Path::new("/nonexistent/users")).unwrap_err();
    assert!(
        error[0].to_string().contains("cannot read the users"),
        "{error:?}"
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"a\xff").unwrap();
    let error = Users::read(file.path()).unwrap_err();
    assert_eq!(error[0].to_string(), "the user file is not UTF-8");
}
