#![no_main]

httpfstream_fuzz::target!(path);
