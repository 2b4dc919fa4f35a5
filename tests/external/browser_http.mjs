// What headless Chromium does by plain HTTP, from pages of the server and of other sites: see browser.mjs.

import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import { join } from 'node:path';
import {
    ENDS, Server, badge, closePage, main, newPage, reached, result, sha, shownBytes, view, within,
} from './browser_lib.mjs';

// ---- Followers that are the browser's own --------------------------------------------------------------------------

// A page that follows with an EventSource: as `follower`, with the states in `got.states`, `@` before those that a
// connection began with.
async function eventSource(page, address, options = {}) {
    await page.evaluate(
        ([address, options, ends]) => {
            const got = (window.got = { length: 0, states: [], pieces: [], kinds: {}, errors: 0 });
            const source = (window.source = new EventSource(address, options));
            const add = (kind, bytes) => {
                got.kinds[kind] = (got.kinds[kind] ?? 0) + 1;
                got.pieces.push(bytes);
                got.length += bytes.length;
            };
            source.onmessage = ({ data }) => add('text', new TextEncoder().encode(data));
            source.addEventListener('base64', ({ data }) => add('base64', Uint8Array.from(atob(data), (c) => c.charCodeAt(0))));
            source.addEventListener('state', ({ data }) => {
                const { state, offset, life, length } = JSON.parse(data);
                got.states.push((offset === undefined ? '' : '@') + state);
                if (offset !== undefined && offset !== got.length) got.gap = offset;
                if (ends.includes(state) && offset === undefined) got.end = length;
                got.life ??= life;
            });
            source.onerror = () => {
                got.errors++;
                if (source.readyState === EventSource.CLOSED) got.isDone = true;
            };
        },
        [address, options, ENDS],
    );
}

// A page that follows with fetch and reads the body as it comes.
async function reader(page, address) {
    await page.evaluate(async (address) => {
        const got = (window.got = { length: 0, pieces: [] });
        const response = await fetch(address);
        got.status = response.status;
        got.headers = Object.fromEntries(response.headers);
        got.done = (async () => {
            try {
                for (const body = response.body.getReader(); ; ) {
                    const { done, value } = await body.read();
                    if (done) break;
                    got.pieces.push(value);
                    got.length += value.length;
                }
                got.clean = true;
            } catch (error) {
                got.error = error.name;
            }
            got.isDone = true;
        })();
    }, address);
}

async function pageOf(server) {
    const page = await newPage();
    await page.goto(`${server.url}/`);
    return page;
}

const lastState = (page, state) => page.waitForFunction((state) => window.got.states.at(-1) === state, state);
const isDone = (page) => page.waitForFunction(() => window.got.isDone);

// An append by one request whose body is written piece by piece.
function upload(server, path, method, headers = {}) {
    const request = http.request(`${server.url}${path}`, { method, headers: { 'Transfer-Encoding': 'chunked', ...headers } });
    request.on('error', () => {});
    request.flushHeaders();
    const answered = once(request, 'response');
    answered.catch(() => {});
    return {
        write: (data) => request.write(data),
        cut: () => request.destroy(),
        async end() {
            request.end();
            const [response] = await within(answered, 'the answer to an append');
            response.resume();
            return response.statusCode;
        },
    };
}

// In front of the server, at a port that outlasts it: counts the requests by their first lines.
async function counted(server) {
    const lines = [];
    const proxy = net.createServer((down) => {
        const up = net.connect(server.port, '127.0.0.1');
        let text = '';
        down.on('data', (data) => {
            text += data.toString('latin1');
            for (let end; (end = text.indexOf('\r\n\r\n')) >= 0; text = text.slice(end + 4)) lines.push(text.split('\r\n', 1)[0]);
        });
        for (const [from, to] of [[down, up], [up, down]]) {
            from.on('error', () => to.destroy());
            from.on('close', () => to.destroy());
            from.pipe(to);
        }
    });
    await once(proxy.listen(0, '127.0.0.1'), 'listening');
    const url = `http://127.0.0.1:${proxy.address().port}`;
    return { url, count: (part) => lines.filter((line) => line.includes(part)).length, close: () => proxy.close() };
}

// Until a browser that means to come back would have: another EventSource, begun now, came back meanwhile.
async function aRetryLater(server) {
    const page = await pageOf(server);
    await eventSource(page, '/lines.txt?verb=FOLLOW');
    await isDone(page);
    await closePage(page);
}

// A page of another site.
async function site() {
    const server = http.createServer((_, response) => {
        response.setHeader('Content-Type', 'text/html');
        response.end('<!doctype html><title>another site</title>');
    });
    await once(server.listen(0, '127.0.0.1'), 'listening');
    const url = `http://127.0.0.1:${server.address().port}`;
    return {
        url,
        close() {
            server.close();
            server.closeAllConnections();
        },
    };
}

// What a page gets by fetch; `headers` are those that it may read.
const ask = (page, address, options = {}) =>
    page.evaluate(
        async ([address, { blob, ...options }]) => {
            try {
                const body = blob === undefined ? undefined : new Blob([blob]);
                const response = await fetch(address, { ...options, body });
                const headers = Object.fromEntries(response.headers);
                return { status: response.status, type: response.type, headers, text: await response.text() };
            } catch (error) {
                return { error: error.name };
            }
        },
        [address, options],
    );

// ---- The checks ----------------------------------------------------------------------------------------------------

export const checks = {
    async check_an_event_source_is_exact_through_kills_of_the_server() {
        const pieces = [
            'one\ntwo\n', 'crlf\r\nand\r', '\nmore\n', 'a lone cr\r', 'over it\n', 'data: x\n\nevent: y\n', '日本語 😀\n',
            Buffer.concat([randomBytes(100_000), Buffer.from('\n')]), 'text again\n'.repeat(20_000), '\n', 'the end, without a line feed',
        ];
        const page = await pageOf(main);
        let asked = 0;
        page.on('request', (request) => (asked += request.url().includes('/events.bin')));
        const appender = main.append('events.bin');
        await eventSource(page, '/events.bin?verb=FOLLOW&wait=20');
        let length = 0;
        for (const [at, piece] of pieces.entries()) {
            // While nobody is there the appender holds what it is given.
            if (at === 4 || at === 8) {
                await main.kill();
                await page.waitForFunction(() => window.source.readyState === EventSource.CONNECTING);
            }
            appender.write(piece);
            if (at === 4 || at === 8) await main.start();
            length += Buffer.byteLength(piece);
            await reached(page, length);
        }
        await page.waitForFunction(() => window.got.states.at(-1).endsWith('live'));
        await appender.finish();
        await isDone(page);
        const before = asked;
        await aRetryLater(main);
        // The first, one after each kill at least, and the one that was answered 204.
        assert.ok(asked === before && asked >= 4, `${asked} requests, ${before} before the end`);
        assert.equal(await page.evaluate(() => window.source.readyState), 2);
        const got = await result(page);
        const data = Buffer.concat(pieces.map((piece) => Buffer.from(piece)));
        assert.equal(got.sha, sha(data));
        assert.equal(got.sha, sha(main.stored('events.bin')));
        assert.deepEqual([got.gap, got.end], [undefined, data.length]);
        assert.ok(got.kinds.text > 5 && got.kinds.base64 > 3, JSON.stringify(got.kinds));
        // The appender is back before or after the browser is.
        assert.match(got.states.join(' '), /^@live (@live|@lost live) (@live|@lost live) finished$/);
    },

    async check_an_event_source_sees_characters_that_are_cut_and_every_state() {
        const data = Buffer.from('x日本語\r\n😀y\r\u00e9\n');
        const page = await pageOf(main);
        const part = { 'Appender-Id': randomBytes(16).toString('hex'), 'Content-Type': 'application/partial-upload' };
        await eventSource(page, '/parts.txt?verb=FOLLOW&wait=20');
        const states = [];
        for (let at = 0; at < data.length; at++) {
            const complete = at + 1 < data.length ? '?0' : '?1';
            const append = upload(main, '/parts.txt', 'PATCH', { ...part, 'Upload-Offset': `${at}`, 'Upload-Complete': complete });
            append.write(data.subarray(at, at + 1));
            const live = at === 0 ? '@live' : 'live';
            await lastState(page, live);
            states.push(live);
            // It tells whole characters only.
            const whole = data.subarray(0, at + 1).toString().replace(/\ufffd+$/, '');
            await page.waitForFunction((length) => window.got.length === length, Buffer.byteLength(whole));
            assert.equal(await append.end(), 200);
            states.push(complete === '?0' ? 'parked' : 'finished');
            await lastState(page, states.at(-1));
        }
        await isDone(page);
        const got = await result(page);
        assert.equal(got.sha, sha(data));
        assert.deepEqual([got.states, got.gap, got.end], [states, undefined, data.length]);
        assert.ok(got.kinds.base64 >= 2 && got.kinds.text >= 6, JSON.stringify(got.kinds));
    },

    async check_an_event_source_is_told_of_an_interrupted_end_and_stops() {
        const through = await counted(main);
        const page = await pageOf(through);
        await eventSource(page, '/torn.txt?verb=FOLLOW&wait=20');
        const append = upload(main, '/torn.txt?verb=APPEND', 'PUT');
        append.write('half');
        await reached(page, 4);
        append.cut();
        await isDone(page);
        // The first, and the one that was answered 204.
        assert.equal(through.count('/torn.txt'), 2);
        await aRetryLater(main);
        assert.equal(through.count('/torn.txt'), 2);
        const got = await result(page);
        assert.deepEqual([got.states, got.length, got.end, got.gap], [['@live', 'interrupted'], 4, 4, undefined]);
        through.close();
    },

    async check_fetch_sees_each_piece_before_the_next_and_a_clean_end() {
        const page = await pageOf(main);
        const append = upload(main, '/fetched.txt?verb=APPEND', 'PUT');
        let length = 0;
        for (const piece of ['one', '\n', '日本'.slice(0, 1), 'x'.repeat(100_000), 'y']) {
            append.write(piece);
            if (length === 0) await reader(page, '/fetched.txt?verb=FOLLOW&wait=20');
            length += Buffer.byteLength(piece);
            await page.waitForFunction((length) => window.got.length === length, length);
        }
        assert.equal(await page.evaluate(() => window.got.isDone), undefined);
        assert.equal(await append.end(), 201);
        await isDone(page);
        const got = await result(page);
        assert.deepEqual([got.status, got.clean, got.sha], [200, true, sha(main.stored('fetched.txt'))]);
        assert.deepEqual([got.headers['stream-state'], got.headers['stream-offset']], ['live', '0']);
    },

    async check_fetch_fails_where_it_is_cut_and_goes_on_by_offset_and_life() {
        const page = await pageOf(main);
        const torn = upload(main, '/torn-too.txt?verb=APPEND', 'PUT');
        torn.write('half');
        await reader(page, '/torn-too.txt?verb=FOLLOW&wait=20');
        await reached(page, 4);
        torn.cut();
        await isDone(page);
        assert.deepEqual(await page.evaluate(() => [window.got.clean, window.got.error, window.got.length]), [undefined, 'TypeError', 4]);

        const data = randomBytes(400_000);
        data[199_999] = data[399_999] = 10;
        const appender = main.append('goes-on.bin');
        appender.write(data.subarray(0, 200_000));
        await reader(page, '/goes-on.bin?verb=FOLLOW&wait=20');
        await reached(page, 200_000);
        const life = await page.evaluate(() => window.got.headers['stream-life']);
        await main.kill();
        await isDone(page);
        assert.equal(await page.evaluate(() => window.got.error), 'TypeError');
        appender.write(data.subarray(200_000));
        await main.start();
        const begun = await page.evaluate(() => window.got.pieces.flatMap((piece) => Array.from(piece)));
        await reader(page, `/goes-on.bin?verb=FOLLOW&offset=200000&life=${life}`);
        await reached(page, 200_000);
        await appender.finish();
        const other = await ask(page, `/goes-on.bin?verb=FOLLOW&offset=200000&life=${'0'.repeat(32)}`);
        assert.equal(other.status, 412);
        const got = await result(page);
        assert.deepEqual([got.clean, got.headers['stream-offset']], [true, '200000']);
        assert.equal(sha(Buffer.from(begun)), sha(data.subarray(0, 200_000)));
        assert.equal(got.sha, sha(data.subarray(200_000)));
    },

    async check_a_page_appends_by_fetch() {
        const page = await pageOf(main);
        const to = '/from a page.txt?verb=APPEND';
        const part = { 'Content-Type': 'application/partial-upload' };
        const steps = [
            [{ method: 'PUT', blob: 'one\n', headers: { 'Upload-Complete': '?0' } }, 201, '4', '?0'],
            [{ method: 'PUT', blob: 'one\n' }, 409, '4', '?0'],
            [{ method: 'PATCH', blob: 'two\n', headers: { ...part, 'Upload-Offset': '4' } }, 200, '8', '?1'],
            [{ method: 'POST', blob: 'three\n' }, 200, '14', '?1'],
            [{ method: 'PATCH', blob: 'x', headers: { ...part, 'Upload-Offset': '4' } }, 409, '14', '?1'],
        ];
        for (const [options, status, offset, complete] of steps) {
            const { headers, ...told } = await ask(page, to, options);
            const got = [told.status, headers?.['upload-offset'], headers?.['upload-complete']];
            assert.deepEqual(got, [status, offset, complete], `${JSON.stringify(options)}: ${told.text ?? told.error}`);
        }
        assert.equal(main.stored('from a page.txt').toString(), 'one\ntwo\nthree\n');
        await closePage(page);
    },

    // Chromium streams a request's body over HTTP/2 and QUIC only, and to plain `http://` it speaks neither.
    async check_a_streamed_request_body_needs_http_2() {
        const page = await pageOf(main);
        const said = page.waitForEvent('console');
        const told = await page.evaluate(async () => {
            const body = new ReadableStream({ pull: (controller) => controller.enqueue(new Uint8Array(1)) }, { highWaterMark: 0 });
            return fetch('/streamed.txt?verb=APPEND', { method: 'PUT', body, duplex: 'half' }).then(({ status }) => status, String);
        });
        assert.equal(told, 'TypeError: Failed to fetch');
        assert.match((await said).text(), /ERR_ALPN_NEGOTIATION_FAILED|ERR_H2_OR_QUIC_REQUIRED/);
        assert.equal((await fetch(`${main.url}/streamed.txt`)).status, 404);
        await closePage(page);
    },

    async check_a_site_that_is_allowed_does_everything() {
        const other = await site();
        const server = await new Server('shared', `--allow-origin=${other.url}`).start();
        const page = await newPage();
        await page.goto(other.url);
        const at = (path) => server.url + path;
        const part = { 'Content-Type': 'application/partial-upload' };
        const id = { 'Appender-Id': randomBytes(16).toString('hex') };
        const has = ({ headers, ...told }, status, expected) => {
            assert.equal(told.status, status, JSON.stringify(told));
            for (const [name, value] of Object.entries(expected)) assert.match(headers[name] ?? 'none', value, name);
        };
        const life = /^[0-9a-f]{32}$/;
        const etag = /^"[^"]+"$/;

        // Writes, with preflights for the method, for the verb's header and for others.
        const put = (headers) => ask(page, at('/a.txt'), { method: 'PUT', blob: 'one\n', headers });
        has(await put({ 'X-Verb': 'APPEND', 'Upload-Complete': '?0', 'Upload-Offset': '0', ...id }), 201, {
            'stream-state': /^parked$/, 'stream-life': life, 'upload-offset': /^4$/, 'upload-complete': /^\?0$/, etag, location: /a\.txt$/,
        });
        const patch = (offset) => {
            const headers = { ...part, ...id, 'Upload-Offset': `${offset}`, 'Upload-Complete': '?1' };
            return ask(page, at('/a.txt'), { method: 'PATCH', blob: 'two\n', headers });
        };
        has(await patch(3), 409, { 'upload-offset': /^4$/, 'content-type': /problem\+json/ });
        has(await patch(4), 200, { 'upload-offset': /^8$/, 'upload-complete': /^\?1$/, 'stream-state': /^finished$/ });
        const post = { method: 'POST', blob: 'three\n', headers: { 'X-Verb': 'APPEND' }, credentials: 'include' };
        has(await ask(page, at('/a.txt'), post), 200, { 'upload-offset': /^14$/ });

        // Reads.
        const whole = { 'stream-state': /^finished$/, 'upload-offset': /^14$/, 'upload-complete': /^\?1$/, 'stream-life': life, etag };
        for (const method of ['GET', 'HEAD']) has(await ask(page, at('/a.txt'), { method }), 200, whole);
        const range = { headers: { Range: 'bytes=4-' }, credentials: 'include' };
        has(await ask(page, at('/a.txt'), range), 206, { 'content-range': /^bytes 4-13\/14$/ });
        const follow = { headers: { 'X-Verb': 'FOLLOW' } };
        has(await ask(page, at('/a.txt?offset=4'), follow), 200, { ...whole, 'stream-offset': /^4$/ });
        has(await ask(page, at('/none.txt?verb=FOLLOW')), 404, { 'content-type': /problem\+json/ });

        // Its own EventSource, and the module: through a restart, and with what is final told apart.
        for (const withCredentials of [false, true]) {
            await eventSource(page, at('/a.txt?verb=FOLLOW'), { withCredentials });
            await isDone(page);
            assert.deepEqual(await page.evaluate(() => [window.got.length, window.got.states]), [14, ['@finished', 'finished']]);
        }
        const appender = server.append('module.txt');
        appender.write('one\n');
        await page.evaluate(async (url) => {
            const { follow } = await import(`${url}/.httpfstream/follow.js`);
            window.follow = follow;
            const got = (window.got = { length: 0, pieces: [], states: [] });
            got.done = (async () => {
                for await (const { type, bytes, state } of follow(`${url}/module.txt`, { wait: 20 })) {
                    if (type === 'state') got.states.push(state);
                    else got.length += (got.pieces.push(bytes), bytes.length);
                }
                got.isDone = true;
            })();
        }, server.url);
        await reached(page, 4);
        await server.kill();
        await lastState(page, 'connecting');
        appender.write('two\n');
        await server.start();
        await reached(page, 8);
        await appender.finish();
        await isDone(page);
        assert.equal(await page.evaluate(() => new Blob(window.got.pieces).text()), 'one\ntwo\n');
        for (const [path, options, code] of [
            ['/none.txt', {}, 'absent'],
            ['/a.txt', { offset: 100 }, 'past-end'],
            ['/a.txt', { offset: 4, life: '0'.repeat(32) }, 'life'],
        ]) {
            const told = await page.evaluate(async ([address, options]) => {
                try {
                    for await (const _ of window.follow(address, options));
                } catch (error) {
                    return error.code;
                }
            }, [at(path), options]);
            assert.equal(told, code);
        }
        assert.equal((await ask(page, at('/a.txt'), { method: 'DELETE' })).status, 204);
        assert.equal(existsSync(join(server.root, 'a.txt')), false);
        await closePage(page);

        // Another site isn't let in by that.
        await refusesASite(server);
        await server.kill();
        other.close();
    },

    async check_a_site_that_is_not_allowed_does_nothing() {
        await refusesASite(main);
    },

    async check_the_badge_of_what_is_parked_and_finished() {
        const part = { 'Content-Type': 'application/partial-upload' };
        const first = upload(main, '/parked.log?verb=APPEND', 'PUT', { 'Upload-Complete': '?0' });
        first.write('one\n');
        const page = await appearing(main, 'parked.log');
        assert.equal(await first.end(), 201);
        await badge(page, 'parked');
        const second = upload(main, '/parked.log', 'PATCH', { ...part, 'Upload-Offset': '4', 'Upload-Complete': '?1' });
        second.write('two\n');
        await badge(page, 'live');
        assert.equal(await second.end(), 200);
        await badge(page, 'finished');
        assert.deepEqual(await page.evaluate(() => window.badges), ['live', 'parked', 'live', 'finished']);
        assert.equal(await shownBytes(page), 8);
        await closePage(page);
    },

    async check_the_badge_of_what_is_lost_and_interrupted() {
        const server = await new Server('hasty', '--grace=1').start();
        const appender = server.append('lost.log');
        appender.write('one\n');
        const page = await appearing(server, 'lost.log');
        appender.child.kill('SIGKILL');
        await badge(page, 'interrupted');
        assert.deepEqual(await page.evaluate(() => window.badges), ['live', 'lost', 'interrupted']);
        assert.equal(await shownBytes(page), 4);
        await closePage(page);
        await server.kill();
    },

    async check_a_signal_ends_the_wait_for_another_try() {
        const nobody = net.createServer();
        await once(nobody.listen(0, '127.0.0.1'), 'listening');
        const address = `http://127.0.0.1:${nobody.address().port}/a.txt`;
        nobody.close();
        const page = await pageOf(main);
        const told = await page.evaluate(async (address) => {
            const { follow } = await import('/.httpfstream/follow.js');
            AbortSignal.timeout = () => new AbortController().signal; // From here on it waits for ever.
            const told = [];
            // While it waits, and before it does.
            for (const soon of [setTimeout, (abort) => abort()]) {
                const control = new AbortController();
                try {
                    for await (const { attempt, reason } of follow(address, { signal: control.signal })) {
                        told.push(attempt, reason);
                        if (attempt === 1) soon(() => control.abort());
                    }
                } catch (error) {
                    told.push(error.name);
                }
            }
            return told;
        }, address);
        const each = [0, undefined, 1, 'no connection', 'AbortError'];
        assert.deepEqual(told, [...each, ...each]);
        await closePage(page);
    },

    // What this server doesn't do, but one with grants that end, or one that is broken.
    async check_what_a_socket_ends_with_is_a_typed_error() {
        const life = '1'.repeat(32);
        const text = (value) => frame(1, JSON.stringify(value));
        const begin = text({ offset: 0, life, state: 'live' });
        const cases = {
            '/expired': [[begin, frame(2, 'x'), frame(8, '\x0f\xa3expired')], 'closed'],
            '/early': [[frame(2, 'x')], 'protocol'],
            '/elsewhere': [[text({ offset: 5, life, state: 'live' })], 'protocol'],
            '/short': [[begin, frame(2, 'xyz'), text({ state: 'finished', length: 5 })], 'protocol'],
            '/garbled': [[frame(1, 'no JSON')], 'protocol'],
        };
        const server = http.createServer((_, response) => response.writeHead(200, { 'Content-Type': 'text/html' }).end());
        server.on('upgrade', ({ url, headers }, socket) => {
            const key = `${headers['sec-websocket-key']}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`;
            socket.on('error', () => {});
            const answer = [
                'HTTP/1.1 101 Switching Protocols', 'Upgrade: websocket', 'Connection: Upgrade',
                `Sec-WebSocket-Accept: ${createHash('sha1').update(key).digest('base64')}`,
                'Sec-WebSocket-Protocol: httpfstream.v1', '\r\n',
            ];
            socket.write(answer.join('\r\n'));
            socket.write(Buffer.concat(cases[url.split('?')[0]][0]));
        });
        await once(server.listen(0, '127.0.0.1'), 'listening');
        const page = await newPage();
        await page.goto(`http://127.0.0.1:${server.address().port}/`);
        for (const [path, [, code]] of Object.entries(cases)) {
            const told = await page.evaluate(async ([module, path]) => {
                const { follow } = await import(module);
                try {
                    for await (const _ of follow(path));
                } catch (error) {
                    return [error.name, error.code];
                }
            }, [`${main.url}/.httpfstream/follow.js`, path]);
            assert.deepEqual(told, ['FollowError', code], path);
        }
        await closePage(page);
        server.close();
        server.closeAllConnections();
    },
};

// A frame of a server, with less than 126 bytes.
const frame = (opcode, payload) => {
    const bytes = Buffer.from(payload, opcode === 8 ? 'latin1' : 'utf8');
    return Buffer.concat([Buffer.from([0x80 | opcode, bytes.length]), bytes]);
};

// The viewer of what has just begun, with every state of its badge in `badges`.
async function appearing(server, name) {
    const page = await newPage();
    await page.goto(server.url);
    await reader(page, `/${name}?verb=FOLLOW&wait=20`);
    await reached(page, 1);
    await closePage(page);
    const viewer = await view(server, name);
    await badge(viewer, 'live');
    await viewer.evaluate(() => {
        const state = document.getElementById('state');
        window.badges = [state.dataset.state];
        const seen = () => state.dataset.state !== window.badges.at(-1) && window.badges.push(state.dataset.state);
        new MutationObserver(seen).observe(state, { attributes: true });
    });
    return viewer;
}

// Whatever a page of a site that isn't allowed tries: it learns nothing, and nothing is stored.
async function refusesASite(server) {
    writeFileSync(join(server.root, 'secret.txt'), 'secret\n');
    const stranger = await site();
    const page = await newPage();
    await page.goto(stranger.url);
    const at = (path) => server.url + path;
    const failed = { error: 'TypeError' };
    const opaque = { status: 0, type: 'opaque', headers: {}, text: '' };
    const append = { 'X-Verb': 'APPEND' };
    for (const [options, told] of [
        [{}, failed],
        [{ method: 'HEAD' }, failed],
        [{ headers: { 'X-Verb': 'FOLLOW' } }, failed],
        [{ mode: 'no-cors' }, opaque],
        [{ method: 'DELETE' }, failed],
    ]) {
        assert.deepEqual(await ask(page, at('/secret.txt'), options), told, JSON.stringify(options));
    }
    for (const [path, options, told] of [
        ['/written.txt', { method: 'PUT', headers: append }, failed],
        ['/written.txt', { method: 'PATCH', headers: { ...append, 'Upload-Offset': '0' } }, failed],
        ['/written.txt?verb=APPEND', { method: 'PUT' }, failed],
        // These go without a preflight.
        ['/written.txt?verb=APPEND', { method: 'POST' }, failed],
        ['/written.txt?verb=APPEND', { method: 'POST', mode: 'no-cors' }, opaque],
        ['/secret.txt?verb=APPEND', { method: 'POST', mode: 'no-cors' }, opaque],
    ]) {
        assert.deepEqual(await ask(page, at(path), { ...options, blob: 'written' }), told, `${path} ${JSON.stringify(options)}`);
    }
    await eventSource(page, at('/secret.txt?verb=FOLLOW'));
    await isDone(page);
    assert.deepEqual(await page.evaluate(() => [window.got.length, window.got.states]), [0, []]);
    const [answer] = await Promise.all([
        page.waitForResponse((response) => response.url().includes('/written.txt')),
        page.evaluate((action) => {
            const form = Object.assign(document.createElement('form'), { method: 'post', enctype: 'text/plain', action });
            form.append(Object.assign(document.createElement('input'), { name: 'a', value: 'b' }));
            document.body.append(form);
            form.submit();
        }, at('/written.txt?verb=APPEND')),
    ]);
    assert.equal(answer.status(), 403);
    assert.equal(existsSync(join(server.root, 'written.txt')), false);
    assert.equal((await fetch(at('/written.txt'))).status, 404);
    assert.equal(server.stored('secret.txt').toString(), 'secret\n');
    await closePage(page);
    stranger.close();
}
