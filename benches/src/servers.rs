//! The peers of the runs, smtp-sink and nginx, and the next hop of all contestants, each on a free
//! port of the loopback interface.
//!
//! No contestant writes a log line per message, so none pays for one. All of them get the same
//! number of workers, except smtp-sink, which has one thread.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::SocketAddrV4;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::gateway::Server;
use crate::process::{Privileges, Running, free_address};
use crate::tls::Certificate;

/// What is said about logging in the report.
pub(crate) const LOGGING: &str = "no line per message or session by any contestant";

/// The module of Debian's package libnginx-mod-mail.
const NGINX_MAIL_MODULE: &str = "/usr/lib/nginx/modules/ngx_mail_module.so";

/// smtp-sink as a contestant: it counts nothing.
pub(crate) fn smtp_sink(directory: &Path) -> Result<Server> {
    let address = free_address()?;
    let args = [&address.to_string(), "1024"];
    let process = Running::start(
        "smtp-sink",
        "smtp-sink",
        &args,
        Privileges::Dropped,
        directory,
    )?;
    Server::listening(process, address)
}

/// smtp-sink as the next hop of all contestants; it counts what arrives (`-c`).
#[derive(Debug)]
pub(crate) struct NextHop(Server);

impl NextHop {
    /// Starts it.
    pub(crate) fn start(directory: &Path) -> Result<Self> {
        let address = free_address()?;
        let args = ["-c", &address.to_string(), "1024"];
        let process = Running::start(
            "next-hop",
            "smtp-sink",
            &args,
            Privileges::Dropped,
            directory,
        )?;
        Server::listening(process, address).map(Self)
    }

    pub(crate) fn address(&self) -> SocketAddrV4 {
        self.0.address
    }

    /// How many messages have arrived since it was started.
    pub(crate) fn messages(&self) -> Result<u64> {
        let mut log = File::open(self.0.process.log())?;
        let len = log.metadata()?.len();
        // The counters are written again and again, with a carriage return after each; the last
        // ones are wanted.
        log.seek(SeekFrom::Start(len.saturating_sub(512)))?;
        let mut text = String::new();
        log.read_to_string(&mut text)?;
        Ok(last_message_count(&text))
    }

    /// Waits until this number of messages has arrived. More or fewer are an error.
    pub(crate) fn expect_messages(&self, expected: u64) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let arrived = self.messages()?;
            if arrived == expected {
                return Ok(());
            }
            if arrived > expected || Instant::now() > deadline {
                bail!("{arrived} messages arrived at the next hop, {expected} were sent");
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The number after the last `mesg=` that is complete; 0 if nothing has arrived.
fn last_message_count(text: &str) -> u64 {
    let complete = text.rfind('\r').map_or("", |end| &text[..end]);
    complete
        .rsplit_once("mesg=")
        .and_then(|(_, count)| count.trim().parse().ok())
        .unwrap_or(0)
}

/// nginx's mail proxy. It has to ask an HTTP server where to send each session: itself.
pub(crate) fn nginx(
    directory: &Path,
    workers: u32,
    next_hop: SocketAddrV4,
    certificate: Option<&Certificate>,
) -> Result<Server> {
    let (address, oracle) = (free_address()?, free_address()?);
    let (next_hop_ip, next_hop_port) = (next_hop.ip(), next_hop.port());
    let tls = certificate.map_or_else(String::new, |Certificate { chain, key }| {
        format!(
            "starttls on; ssl_certificate {}; ssl_certificate_key {};
    ssl_protocols TLSv1.2 TLSv1.3; ssl_session_tickets off; ssl_session_cache off;",
            chain.display(),
            key.display()
        )
    });
    let configuration = format!(
        "load_module {NGINX_MAIL_MODULE};
daemon off;
user nobody nogroup;
worker_processes {workers};
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    server {{
        listen {oracle};
        location / {{
            add_header Auth-Status OK;
            add_header Auth-Server {next_hop_ip};
            add_header Auth-Port {next_hop_port};
            return 204;
        }}
    }}
}}
mail {{
    server_name nginx.bench.example;
    auth_http {oracle}/;
    xclient off;
    {tls}
    server {{ listen {address}; protocol smtp; smtp_auth none; }}
}}
"
    );
    fs::write(directory.join("nginx.conf"), configuration)?;
    // -p: relative paths of the configuration are in the run's directory.
    let prefix = format!("{}/", directory.display());
    let args = ["-p", &prefix, "-c", "nginx.conf", "-e", "stderr"];
    let process = Running::start("nginx", "nginx", &args, Privileges::Kept, directory)?;
    Server::listening(process, address)
}

#[cfg(test)]
mod tests {
    use super::last_message_count;

    #[test]
    fn counters_half_written_are_not_read_as_fewer_messages() {
        let text = "sess=50 quit=49 mesg=1999\rsess=50 quit=50 mesg=2000\rsess=51 quit=50 mesg=20";
        assert_eq!(last_message_count(text), 2000);
        assert_eq!(last_message_count(""), 0);
    }
}
