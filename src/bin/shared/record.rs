//! The record beside a file, `FILE.httpfstream`, from which a later run resumes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use httpfstream::AppenderId;
use httpfstream::Life;

use super::exit::Failure;

/// The state of a transfer. Stored as one line for each field: its name and its value.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) url: String,
    /// The appender's id, if this is an appender's record.
    pub(crate) id: Option<AppenderId>,
    pub(crate) life: Option<Life>,
    /// The offset in the resource of the file's first byte.
    pub(crate) base: u64,
    /// The offset up to which an appender's bytes are acknowledged.
    pub(crate) acknowledged: u64,
    /// The length at which an appender is finishing the resource, or has finished it.
    pub(crate) finishing: Option<u64>,
}

/// The path of a file's record.
#[derive(Debug)]
pub(crate) struct RecordFile(PathBuf);

impl RecordFile {
    /// The record of this file.
    pub(crate) fn beside(file: &Path) -> Self {
        let mut path = file.as_os_str().to_owned();
        path.push(".httpfstream");
        Self(path.into())
    }

    /// The stored record, which has to be for this URL. `None` if there is none.
    pub(crate) fn load(&self, url: &str) -> Result<Option<Record>, Failure> {
        let text = match fs::read_to_string(&self.0) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed("can't be read", &error)),
        };
        let record = parse(&text)
            .ok_or_else(|| Failure::Local(format!("{} is damaged; remove it to start over", self.0.display())))?;
        if record.url != url {
            let detail =
                format!("{} belongs to {}; give that URL, or remove it to start over", self.0.display(), record.url);
            return Err(Failure::Local(detail));
        }
        Ok(Some(record))
    }

    /// Replaces the record. Once this returns it survives a power loss. Only its owner can read it.
    pub(crate) fn save(&self, record: &Record) -> Result<(), Failure> {
        self.replace(&format(record)).map_err(|error| self.failed("can't be written", &error))
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        let mut new = self.0.clone().into_os_string();
        new.push(".new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &self.0)?;
        self.sync_dir()
    }

    pub(crate) fn remove(&self) -> Result<(), Failure> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| self.sync_dir()).map_err(|error| self.failed("can't be removed", &error)),
        }
    }

    fn sync_dir(&self) -> io::Result<()> {
        let dir = self.0.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Other systems can't open a folder.
        if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
    }

    fn failed(&self, what: &str, error: &io::Error) -> Failure {
        Failure::Local(format!("{} {what}: {error}", self.0.display()))
    }
}

fn format(record: &Record) -> String {
    let mut text = format!("url {}\nbase {}\nacknowledged {}\n", record.url, record.base, record.acknowledged);
    if let Some(id) = &record.id {
        text += &format!("id {}\n", id.as_str());
    }
    if let Some(life) = record.life {
        text += &format!("life {life}\n");
    }
    if let Some(length) = record.finishing {
        text += &format!("finishing {length}\n");
    }
    text
}

fn parse(text: &str) -> Option<Record> {
    let mut record = Record::default();
    for line in text.lines() {
        let (name, value) = line.split_once(' ')?;
        match name {
            "url" => record.url = value.to_owned(),
            "id" => record.id = Some(value.parse().ok()?),
            "life" => record.life = Some(Life::from_bits(u128::from_str_radix(value, 16).ok()?)),
            "base" => record.base = value.parse().ok()?,
            "acknowledged" => record.acknowledged = value.parse().ok()?,
            "finishing" => record.finishing = Some(value.parse().ok()?),
            _ => return None,
        }
    }
    Some(record)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_record_is_loaded_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let file = RecordFile::beside(&folder.path().join("log.txt"));
        assert!(file.load("http://h/").unwrap().is_none());
        let id = AppenderId::random().unwrap();
        let life = Some(Life::from_bits(7));
        let mut record =
            Record { url: "http://h/".into(), id: Some(id.clone()), life, base: 3, acknowledged: 5, finishing: None };
        file.save(&record).unwrap();
        record.finishing = Some(9);
        file.save(&record).unwrap();
        let found = file.load("http://h/").unwrap().unwrap();
        assert_eq!((found.id, found.life, found.base, found.acknowledged), (Some(id), life, 3, 5));
        assert_eq!(found.finishing, Some(9));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = fs::metadata(folder.path().join("log.txt.httpfstream")).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert!(matches!(file.load("http://other/"), Err(Failure::Local(why)) if why.contains("http://h/")));
        file.remove().unwrap();
        assert!(file.load("http://h/").unwrap().is_none());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_record_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["life x\n", "what\n", "id short\n", "base -1\n", "\n"] {
            fs::write(folder.path().join("f.httpfstream"), text).unwrap();
            let file = RecordFile::beside(&folder.path().join("f"));
            assert!(matches!(file.load("u"), Err(Failure::Local(why)) if why.contains("damaged")), "{text}");
        }
    }
}
