// What headless Chromium sees with its own `WebSocket`, over HTTP/1.1 and HTTP/2: see browser.sh.

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import http from 'node:http';
import { Server, closePage, newPage, sha, start, within } from './browser_lib.mjs';

// The example that serves https, with what it printed.
class Tls {
    constructor(...protocols) {
        this.child = start('examples/tls', ['127.0.0.1:0', ...protocols], { stdio: ['pipe', 'pipe', 'pipe'] });
        this.said = '';
        this.child.stdout.on('data', (text) => (this.said += text));
    }

    async until(pattern) {
        while (!pattern.test(this.said)) await within(once(this.child.stdout, 'data'), `${pattern} in ${this.said}`);
        return pattern.exec(this.said);
    }

    async start() {
        this.url = (await this.until(/https:\/\/localhost:\d+/))[0];
        return this;
    }

    async stop() {
        this.child.kill('SIGKILL');
        await this.child.exited;
    }
}

const trusting = { ignoreHTTPSErrors: true };

// What a page has that appends data in pieces and follows it meanwhile and afterwards; all in its own sockets.
const appendAndFollow = async ([base, pieces]) => {
    const ended = (socket) => new Promise((resolve) => socket.addEventListener('close', ({ code }) => resolve(code)));
    const opened = (socket) =>
        new Promise((resolve, reject) => {
            socket.addEventListener('open', resolve);
            socket.addEventListener('close', ({ code }) => reject(new Error(`closed with ${code}`)));
        });
    const follow = (more = '') => {
        const socket = new WebSocket(`${base}?verb=FOLLOW${more}`);
        socket.binaryType = 'arraybuffer';
        const got = [];
        socket.addEventListener('message', ({ data }) => got.push(typeof data === 'string' ? new TextEncoder().encode(data) : data));
        const done = ended(socket).then(async (code) => {
            const bytes = await new Blob(got).arrayBuffer();
            const digest = await crypto.subtle.digest('SHA-256', bytes);
            return { code, length: bytes.byteLength, digest: Array.from(new Uint8Array(digest)) };
        });
        return { socket, done };
    };
    const appender = new WebSocket(`${base}?verb=APPEND`);
    await opened(appender);
    const live = [follow('&wait=20'), follow('&wait=20'), follow('&wait=20')];
    const decode = (piece) => Uint8Array.from(atob(piece), (c) => c.charCodeAt(0));
    const send = (some) => some.forEach((piece) => appender.send(decode(piece)));
    send(pieces.slice(0, 10));
    // However long their handshakes take, they are there before the end.
    await Promise.all(live.map(({ socket }) => opened(socket)));
    send(pieces.slice(10));
    appender.send('and text ✓');
    const closed = ended(appender);
    appender.close(1000);
    const results = [await closed];
    for (const { done } of live) results.push(await done);
    // What is at rest is an upgrade only with the subprotocol, or over HTTP/2.
    const late = new WebSocket(`${base}?verb=FOLLOW`, 'httpfstream.v1');
    late.binaryType = 'arraybuffer';
    let length = 0;
    late.addEventListener('message', ({ data }) => (length += typeof data === 'string' ? 0 : data.byteLength));
    results.push({ code: await ended(late), length });
    return results;
};

async function exact(server, name, protocol, connects) {
    const page = await newPage(trusting);
    await page.goto(`${server.url}/`);
    const pieces = Array.from({ length: 20 }, (_, n) => randomBytes(n === 7 ? 1_000_000 : 1 + n * 997));
    const all = Buffer.concat([...pieces, Buffer.from('and text ✓')]);
    const base = `${server.url.replace('https', 'wss')}/streams/${name}`;
    const [closed, ...followed] = await page.evaluate(appendAndFollow, [base, pieces.map((piece) => piece.toString('base64'))]);
    const late = followed.pop();
    assert.equal(closed, 1000);
    for (const { code, length, digest } of followed) {
        assert.deepEqual([code, length, Buffer.from(digest).toString('hex')], [1000, all.length, sha(all)]);
    }
    assert.deepEqual(late, { code: 1000, length: all.length });
    // And it came as it should.
    await server.until(new RegExp(`${protocol} ${connects} /streams/${name}`));
    assert.doesNotMatch(server.said, new RegExp(`${protocol === 'HTTP/2.0' ? 'HTTP/1.1' : 'HTTP/2.0'} `));
    await closePage(page);
}

export const checks = {
    async check_websockets_over_http2_are_exact() {
        const server = await new Tls().start();
        await exact(server, 'two.bin', 'HTTP/2.0', 'CONNECT');
        await server.stop();
    },

    async check_websockets_over_https_and_http1_are_exact() {
        const server = await new Tls('http/1.1').start();
        await exact(server, 'one.bin', 'HTTP/1.1', 'GET');
        await server.stop();
    },

    async check_the_page_of_the_example_appends_and_follows() {
        for (const protocols of [[], ['http/1.1']]) {
            const server = await new Tls(...protocols).start();
            const page = await newPage(trusting);
            await page.goto(`${server.url}/`);
            for (const line of ['first', 'sécond ✓']) {
                await page.fill('#line', line);
                await page.press('#line', 'Enter');
                await page.waitForFunction((line) => document.getElementById('shown').textContent.endsWith(`${line}\n`), line);
            }
            await page.click('#end');
            await page.waitForFunction(() => document.getElementById('ended').value === 'finished');
            assert.equal(await page.$eval('#shown', (shown) => shown.textContent), 'first\nsécond ✓\n');
            assert.deepEqual(page.said, []);
            await closePage(page);
            await server.stop();
        }
    },

    // A page of another site can neither append nor follow nor wait, over either version, and leaves nothing behind.
    async fault_17_pages_of_other_sites_get_no_websocket() {
        const foreign = http.createServer((_, response) => response.end('<!doctype html>foreign')).listen(0, '127.0.0.1');
        await once(foreign, 'listening');
        for (const protocols of [[], ['http/1.1']]) {
            const server = await new Tls(...protocols).start();
            const own = await newPage(trusting);
            await own.goto(`${server.url}/`);
            const pages = [await newPage(trusting), await newPage(trusting)];
            await pages[0].goto(`http://127.0.0.1:${foreign.address().port}/`);
            // Its origin is `null`.
            await pages[1].goto('data:text/html,<!doctype html>null');
            for (const page of pages) {
                const tried = await page.evaluate(
                    async (base) => {
                        const tried = [];
                        for (const verb of ['APPEND', 'FOLLOW', 'FOLLOW&wait=5']) {
                            for (const protocols of [[], ['httpfstream.v1']]) {
                                const socket = new WebSocket(`${base}?verb=${verb}`, protocols);
                                tried.push(
                                    await new Promise((resolve) => {
                                        socket.addEventListener('open', () => resolve('open'));
                                        socket.addEventListener('close', ({ code }) => resolve(code));
                                    }),
                                );
                            }
                        }
                        return tried;
                    },
                    `${server.url.replace('https', 'wss')}/streams/foreign.txt`,
                );
                assert.deepEqual(tried, Array(6).fill(1006));
            }
            assert.equal(await own.evaluate(async () => (await fetch('/streams/foreign.txt')).status), 404);
            for (const page of [own, ...pages]) await closePage(page);
            await server.stop();
        }
        foreign.close();
    },

    // Stored pages are shown, but can't do anything in the site's name.
    async fault_18_a_stored_page_can_not_script_the_site() {
        const server = await new Server('harmless').start();
        const evil = (how) => `<!doctype html><title>${how}</title><p>shown</p><script>
            document.title = 'ran';
            fetch('/stolen', { method: 'PUT', body: document.cookie });
            new WebSocket('ws://' + location.host + '/stolen?verb=APPEND');
        </script><img src=x onerror="document.title = 'ran'"><iframe srcdoc="<script>parent.document.title = 'ran'</script>"></iframe>`;
        await server.put('page.html', evil('html'));
        await server.put('page.svg', '<svg xmlns="http://www.w3.org/2000/svg"><script>document.title = "ran"</script></svg>');
        await server.put('page.js', 'document.title = "ran"; window.ran = true');
        await server.put('page', evil('sniffed'));
        const page = await newPage();
        for (const name of ['page.html', 'page.svg', 'page', 'page.html?verb=FOLLOW', 'page.html?view', 'page?view']) {
            await page.goto(`${server.url}/${name}`);
            assert.notEqual(await page.title(), 'ran', name);
            const origin = await page.evaluate(() => self.origin);
            assert.ok(name.endsWith('view') || origin === 'null', `${name} has the origin ${origin}`);
        }
        // As a script of another page's it isn't taken for one unless it says that it is.
        await page.goto(`${server.url}/?view`);
        const ran = await page.evaluate(
            () =>
                new Promise((resolve) => {
                    const script = document.createElement('script');
                    script.src = '/page';
                    script.onload = () => resolve('loaded');
                    script.onerror = () => resolve('refused');
                    document.head.append(script);
                }),
        );
        assert.equal(ran, 'refused');
        assert.equal(await page.evaluate(async () => (await fetch('/stolen')).status), 404);
        await closePage(page);
        server.child.kill('SIGKILL');
        await server.child.exited;
    },
};
