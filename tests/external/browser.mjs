// What headless Chromium sees of the built server: see browser.sh.
//
// Each function in `checks` is one check, and all of them run. Everything waits on events, for a bounded time.

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import { join } from 'node:path';
import { checks as plain } from './browser_http.mjs';
import { checks as websockets } from './browser_ws.mjs';
import {
    Server, answers, arrived, badge, browser, closePage, flags, follower, main, newPage, reached, repo, result, rows, sha,
    shownBytes, showsBytes, showsRow, started, view, within,
} from './browser_lib.mjs';

// ---- The checks ----------------------------------------------------------------------------------------------------

const checks = {
    async check_follow_is_exact_through_kills_of_the_server() {
        const data = randomBytes(3_000_000);
        // What may be the beginning of a character is held back by the appender until its rest comes.
        for (const at of [999_999, 1_999_999, 2_999_999]) data[at] = 120;
        const appender = main.append('exact.bin');
        appender.write(data.subarray(0, 1_000_000));
        const page = await follower(main, '/exact.bin', { wait: 10 });
        await reached(page, 1_000_000);
        await main.kill();
        await page.waitForFunction(() => window.got.states.at(-1) === 'connecting');
        appender.write(data.subarray(1_000_000, 2_000_000));
        await main.start();
        await reached(page, 2_000_000);
        await main.kill();
        appender.write(data.subarray(2_000_000));
        await main.start();
        await reached(page, data.length);
        await appender.finish();
        const got = await result(page);
        assert.equal(got.sha, sha(data));
        assert.equal(got.sha, sha(main.stored('exact.bin')));
        assert.deepEqual([got.gap, got.end, got.error], [undefined, data.length, undefined]);
        const states = got.states.filter((state, at) => state !== got.states[at - 1]).join(' ');
        assert.match(states, /^connecting live connecting (lost )?live connecting (lost )?live finished$/);
    },

    async check_what_was_still_empty_may_be_made_anew() {
        const server = await new Server('anew').start();
        const appender = server.append('a.txt');
        const page = await follower(server, '/a.txt', { wait: 10 });
        await page.waitForFunction(() => window.got.states.at(-1) === 'live');
        await server.kill();
        await page.waitForFunction(() => window.got.states.at(-1) === 'connecting');
        appender.child.kill('SIGKILL');
        await server.start();
        // Several times there is nothing.
        await page.waitForFunction(() => window.got.states.length > 4);
        await server.put('a.txt', 'made anew');
        const got = await result(page);
        assert.deepEqual([got.length, got.gap, got.end, got.error], [9, undefined, 9, undefined]);
        await server.kill();
    },

    async check_follow_begins_where_it_is_told_to() {
        for (const [options, text] of [
            [{ lines: 2 }, 'two\nthree\n'],
            [{ tail: 3 }, 'ee\n'],
            [{ offset: 4 }, 'two\nthree\n'],
            [{}, 'one\ntwo\nthree\n'],
        ]) {
            const got = await result(await follower(main, 'lines.txt?x=%2B&y', options));
            assert.equal(got.sha, sha(text), JSON.stringify(options));
            assert.deepEqual([got.states, got.end], [['connecting', 'finished'], 14]);
        }
    },

    async check_what_is_final_is_a_typed_error() {
        const failed = async (...follow) => {
            const got = await result(await follower(main, ...follow));
            assert.ok(got.isTyped, JSON.stringify(got));
            return got.error;
        };
        assert.equal(await failed('/nowhere'), 'absent');
        assert.equal(await failed('/nowhere', { wait: 1 }), 'absent');
        assert.equal(await failed('/lines.txt', { offset: 100 }), 'past-end');
        assert.equal(await failed('/lines.txt', { offset: 3, life: '0'.repeat(32) }), 'life');
        assert.equal(await failed('/a%00b'), 'refused');
    },

    // Chromium asks its user when a server has a Basic challenge, and headless that waits for ever: so this one has none.
    async check_refusals_are_typed_errors() {
        for (const [status, code] of [[401, 'unauthorized'], [403, 'forbidden'], [400, 'refused']]) {
            const server = http.createServer((request, response) => {
                const { pathname } = new URL(request.url, 'http://x');
                if (pathname.endsWith('.js')) {
                    response.setHeader('Content-Type', 'text/javascript');
                    return response.end(readFileSync(join(repo, 'src/web/follow.js')));
                }
                response.writeHead(pathname === '/' ? 200 : status, { 'Content-Type': 'text/html' }).end();
            });
            server.on('upgrade', (_, socket) => socket.end(`HTTP/1.1 ${status} No\r\nContent-Length: 0\r\n\r\n`));
            await once(server.listen(0, '127.0.0.1'), 'listening');
            const got = await result(await follower({ url: `http://127.0.0.1:${server.address().port}` }, '/a.txt'));
            assert.deepEqual([got.error, got.isTyped, got.states], [code, true, ['connecting']]);
            server.close();
            server.closeAllConnections();
        }
    },

    async check_two_lives_are_never_spliced() {
        const appender = main.append('lives.txt');
        appender.write('the first life\n');
        // Nothing is asked before the second life is there.
        let made;
        const isMade = new Promise((resolve) => (made = resolve));
        const hold = (page) => page.route('**/lives.txt*', (route) => isMade.then(() => route.continue()));
        const page = await follower(main, '/lives.txt', { wait: 10 }, hold);
        await reached(page, 15);
        await fetch(`${main.url}/lives.txt`, { method: 'DELETE' });
        await within(appender.child.exited, 'the end of the fenced appender');
        await main.put('lives.txt', 'the second life, which is longer\n');
        made();
        const got = await result(page);
        assert.deepEqual([got.error, got.isTyped, got.length], ['life', true, 15]);
        const absent = await follower(main, '/lives.txt', { life: got.life, offset: 15 });
        assert.equal((await result(absent)).error, 'life');
    },

    async check_deleted_while_followed_is_absent() {
        const appender = main.append('gone.txt');
        appender.write('here\n');
        const page = await follower(main, '/gone.txt', { wait: 10 });
        await reached(page, 5);
        await fetch(`${main.url}/gone.txt`, { method: 'DELETE' });
        assert.equal((await result(page)).error, 'absent');
        await within(appender.child.exited, 'the end of the fenced appender');
    },

    async check_an_interrupted_end_is_told() {
        const page = await newPage();
        await page.goto(`${main.url}/`);
        const told = await page.evaluate(async () => {
            const { followText } = await import('/.httpfstream/follow.js');
            // Without an id it can't come back. Characters are cut in the middle, each half its own message.
            const socket = new WebSocket(`ws://${location.host}/cut.txt?verb=APPEND`, 'httpfstream.v1');
            await new Promise((resolve) => (socket.onmessage = resolve));
            const pieces = [];
            const all = (async () => {
                try {
                    for await (const text of followText('cut.txt', { wait: 10 })) {
                        pieces.push(text);
                        // The next half goes out when the one before has come, or can't be told from nothing.
                        next();
                    }
                } catch (error) {
                    return error.code;
                }
            })();
            const bytes = new TextEncoder().encode('x日本語😀');
            let sent = 0;
            const next = () => {
                if (sent < bytes.length) socket.send(bytes.subarray(sent, (sent = sent === 0 ? 2 : bytes.length)));
                else socket.close(3000);
            };
            next();
            return { code: await all, pieces };
        });
        assert.deepEqual(told, { code: 'interrupted', pieces: ['x', '日本語😀'] });
        await closePage(page);
    },

    async check_a_signal_ends_it_and_leaving_closes() {
        const appender = main.append('quiet.txt');
        appender.write('x');
        const page = await follower(main, '/quiet.txt', { wait: 10 });
        await reached(page, 1);
        const told = await page.evaluate(async () => {
            const { follow } = await import('/.httpfstream/follow.js');
            const sockets = [];
            const Real = WebSocket;
            window.WebSocket = class extends Real {
                constructor(...args) {
                    super(...args);
                    sockets.push(this);
                }
            };
            const control = new AbortController();
            const first = (async () => {
                for await (const event of follow('/quiet.txt', { signal: control.signal })) {
                    // By a task of its own: the loop waits for the next event by then.
                    if (event.type === 'data') setTimeout(() => control.abort());
                }
            })().catch((error) => error.name);
            const name = await first;
            for await (const event of follow('/quiet.txt')) if (event.type === 'data') break;
            // Before it has begun.
            const early = new AbortController();
            const never = (async () => {
                for await (const event of follow('/quiet.txt', { signal: early.signal })) early.abort();
            })().catch((error) => error.name);
            if ((await never) !== 'AbortError') return 'not ended';
            return { name, open: sockets.map((socket) => socket.readyState >= 2), count: sockets.length };
        });
        assert.deepEqual(told, { name: 'AbortError', open: [true, true], count: 2 });
        await closePage(page);
        await appender.finish();
    },

    async check_a_slow_loop_does_not_pile_up_memory_and_misses_nothing() {
        const data = randomBytes(80_000_000);
        writeFileSync(join(main.root, 'large.bin'), data);
        const page = await newPage();
        await page.goto(`${main.url}/`);
        const got = await page.evaluate(async () => {
            const { follow } = await import('/.httpfstream/follow.js');
            const pieces = [];
            let connections = 0;
            const Real = WebSocket;
            window.WebSocket = class extends Real {
                constructor(...args) {
                    super(...args);
                    connections++;
                }
            };
            let states = 0;
            for await (const event of follow('/large.bin')) {
                if (event.type === 'state') states++;
                else {
                    pieces.push(event.bytes);
                    // Until the module has had enough, or all has come.
                    if (pieces.length === 1) await new Promise((resolve) => setTimeout(resolve, 1500));
                }
            }
            const digest = await crypto.subtle.digest('SHA-256', await new Blob(pieces).arrayBuffer());
            return { digest: Array.from(new Uint8Array(digest)), connections, states };
        });
        assert.equal(Buffer.from(got.digest).toString('hex'), sha(data));
        assert.ok(got.connections > 1, `${got.connections} connections`);
        await closePage(page);
    },

    async check_a_token_is_asked_for_and_taken() {
        const server = await new Server('private', '--token=open:sesame').start();
        writeFileSync(join(server.root, 'a.txt'), 'hello\n');
        const ask = (headers, path = '/a.txt', method = 'GET') => fetch(server.url + path, { headers, method });
        const basic = (text) => ({ Authorization: `Basic ${Buffer.from(text).toString('base64')}` });
        const refused = await ask({});
        assert.equal(refused.status, 401);
        assert.match(refused.headers.get('www-authenticate'), /^Bearer, Basic realm="httpfstream"$/);
        for (const path of ['/.httpfstream/follow.js', '/.httpfstream/view.css', '/a.txt?view', '/']) {
            assert.equal((await ask({}, path)).status, 401, path);
        }
        assert.equal((await ask(basic('me:wrong'))).status, 401);
        assert.equal((await ask(basic(':open:sesame'))).status, 200);
        assert.equal((await ask({ Authorization: 'Bearer open:sesame' })).status, 200);
        const preflight = { Origin: 'http://a.example', 'Access-Control-Request-Method': 'PUT' };
        assert.notEqual((await ask(preflight, '/a.txt', 'OPTIONS')).status, 401);
        assert.equal((await ask({}, '/a.txt', 'OPTIONS')).status, 401);

        // With what the user types, the page, its scripts and its WebSocket are let in.
        const page = await view(server, 'a.txt', { httpCredentials: { username: 'me', password: 'open:sesame' } });
        await badge(page, 'finished');
        assert.deepEqual(await rows(page), ['hello']);
        await closePage(page);
        await server.kill();
    },

    async check_pages_of_allowed_sites_may_read_that_they_have_no_token() {
        const site = http.createServer((_, response) => {
            response.setHeader('Content-Type', 'text/html');
            response.end('<!doctype html><title>another site</title>');
        });
        await once(site.listen(0, '127.0.0.1'), 'listening');
        const origin = `http://127.0.0.1:${site.address().port}`;
        const server = await new Server('allowing', '--token=sesame', `--allow-origin=${origin}`).start();
        const page = await newPage();
        for (const [from, told] of [[origin, 401], [origin.replace('127.0.0.1', 'localhost'), 'TypeError']]) {
            await page.goto(from);
            const ask = (url) => fetch(url, { method: 'HEAD' }).then(({ status }) => status, ({ name }) => name);
            assert.equal(await page.evaluate(ask, `${server.url}/a.txt?verb=FOLLOW`), told, from);
        }
        await closePage(page);
        await server.kill();
        site.close();
    },

    async check_pages_of_other_sites_are_refused_but_may_import_the_module() {
        const site = http.createServer((_, response) => {
            response.setHeader('Content-Type', 'text/html');
            response.end('<!doctype html><title>another site</title>');
        });
        await once(site.listen(0, '127.0.0.1'), 'listening');
        const page = await newPage();
        await page.goto(`http://127.0.0.1:${site.address().port}/`);
        for (const verb of ['FOLLOW', 'APPEND']) {
            const address = `${main.url.replace('http', 'ws')}/lines.txt?verb=${verb}`;
            const code = await page.evaluate(
                (address) =>
                    new Promise((resolve) => {
                        const socket = new WebSocket(address, 'httpfstream.v1');
                        socket.onopen = () => resolve('open');
                        socket.onclose = ({ code }) => resolve(code);
                    }),
                address,
            );
            assert.equal(code, 1006);
            const refusal = page.said.find((text) => text.includes(address));
            assert.match(refusal ?? '', /403/, `${verb}: ${page.said}`);
        }
        const type = await page.evaluate(async (url) => typeof (await import(url)).follow, `${main.url}/.httpfstream/follow.js`);
        assert.equal(type, 'function');
        await closePage(page);
        site.close();
    },

    async check_assets_are_cached_by_their_tag_and_pages_are_locked_down() {
        for (const [name, type] of [
            ['follow.js', 'text/javascript; charset=utf-8'],
            ['lines.js', 'text/javascript; charset=utf-8'],
            ['view.js', 'text/javascript; charset=utf-8'],
            ['view.css', 'text/css; charset=utf-8'],
        ]) {
            const { headers, status } = await fetch(`${main.url}/.httpfstream/${name}`);
            assert.deepEqual([status, headers.get('content-type')], [200, type]);
            assert.equal(headers.get('access-control-allow-origin'), name === 'follow.js' ? '*' : null);
            const again = await fetch(`${main.url}/.httpfstream/${name}`, { headers: { 'If-None-Match': headers.get('etag') } });
            assert.equal(again.status, 304);
        }
        for (const path of ['/lines.txt?view', '/']) {
            const { headers } = await fetch(main.url + path);
            assert.match(headers.get('content-security-policy'), /^default-src 'none'; script-src 'self'; .*frame-ancestors 'none'$/);
            assert.equal(headers.get('x-content-type-options'), 'nosniff');
            assert.equal(headers.get('referrer-policy'), 'no-referrer');
            assert.equal(headers.get('cache-control'), 'no-cache');
        }
        // A page that makes its own name point here (DNS rebinding) gets none of them.
        for (const path of ['/lines.txt?view', '/', '/.httpfstream/follow.js']) {
            const asked = http.get(main.url + path, { headers: { Host: 'evil.example' } });
            const [response] = await within(once(asked, 'response'), 'an answer');
            response.resume();
            assert.equal(response.statusCode, 421, path);
        }
        // A HEAD is answered as its GET.
        for (const path of ['/lines.txt?view', '/']) {
            const [get, head] = await Promise.all(['GET', 'HEAD'].map((method) => fetch(main.url + path, { method })));
            for (const name of ['content-type', 'content-security-policy', 'cache-control', 'x-content-type-options']) {
                assert.equal(head.headers.get(name), get.headers.get(name), `${path}: ${name}`);
            }
            assert.equal(head.status, 200);
            assert.equal(head.headers.get('content-length'), String((await get.arrayBuffer()).byteLength));
        }
        assert.equal((await fetch(`${main.url}/lines.txt`, { method: 'HEAD' })).headers.get('content-length'), '14');
        // Only what exists can be viewed, and only without a verb.
        assert.equal((await fetch(`${main.url}/nowhere?view`)).status, 404);
        assert.equal(await (await fetch(`${main.url}/lines.txt?view&verb=FOLLOW`)).text(), 'one\ntwo\nthree\n');
        assert.equal(await (await fetch(`${main.url}/lines.txt`)).text(), 'one\ntwo\nthree\n');
    },

    async check_the_viewer_goes_from_live_to_finished() {
        const appender = main.append('deep/down/live.log');
        appender.write('one\ntwo\nthr');
        await arrived(main, '/deep/down/live.log', 11);
        const page = await view(main, 'deep/down/live.log');
        await badge(page, 'live');
        await showsRow(page, 'thr');
        appender.write('ee\r\nfour\n');
        await showsRow(page, 'four');
        assert.deepEqual(await rows(page), ['one', 'two', 'three', 'four']);
        assert.equal(await page.title(), '● live.log');
        await appender.finish();
        await badge(page, 'finished');
        assert.equal(await shownBytes(page), main.stored('deep/down/live.log').length);
        const raw = await page.$eval('#raw', (link) => link.href);
        assert.equal(raw, `${main.url}/deep/down/live.log`);
        assert.deepEqual(page.said, []);
        await closePage(page);
    },

    async check_colours_progress_bars_and_scripts() {
        await main.put(
            'colours.log',
            '\x1b[31mred\x1b[0m \x1b[1;4mbold\x1b[0m \x1b[38;5;208morange\x1b[m \x1b[48;2;1;2;3mdeep\x1b[0m \x1b[7minverse\x1b[0m plain\n' +
                ' 10%\r 50%\r100%\n' +
                'a long one\rshort\x1b[K\n' +
                '<script>alert(1)</script><img src=x onerror=alert(2)>\n' +
                'x\x1b]0;title\x07y\x1b[2Jz a\tb abc\b\bd\r\n',
        );
        const page = await view(main, 'colours.log');
        await badge(page, 'finished');
        await showsRow(page, '100%');
        assert.deepEqual(await rows(page), [
            'red bold orange deep inverse plain',
            '100%',
            'short',
            '<script>alert(1)</script><img src=x onerror=alert(2)>',
            'xyz a   b adc',
        ]);
        const styles = await page.$$eval('#rows > div:first-child > span', (spans) =>
            Object.fromEntries(
                spans.map((span) => {
                    const { color, backgroundColor, fontWeight, textDecorationLine } = getComputedStyle(span);
                    return [span.textContent, { color, backgroundColor, fontWeight, textDecorationLine }];
                }),
            ),
        );
        assert.equal(styles.red.color, 'rgb(179, 38, 30)');
        assert.equal(styles.orange.color, 'rgb(255, 135, 0)');
        assert.equal(styles.deep.backgroundColor, 'rgb(1, 2, 3)');
        assert.deepEqual([styles.bold.fontWeight, styles.bold.textDecorationLine], ['700', 'underline']);
        assert.deepEqual([styles.inverse.color, styles.inverse.backgroundColor], ['rgb(255, 255, 255)', 'rgb(28, 33, 38)']);
        assert.equal(await page.$('#rows script, #rows img'), null);
        assert.deepEqual(page.said, []);
        await closePage(page);
    },

    async check_lines_are_as_a_terminal_shows_them_wherever_chunks_end() {
        const source = readFileSync(join(repo, 'src/web/lines.js'), 'utf8');
        const { Lines } = await import(`data:text/javascript,${encodeURIComponent(source)}`);
        // Each character with its style.
        const shown = (...chunks) => {
            const lines = new Lines();
            for (const chunk of chunks) lines.write(chunk);
            lines.end();
            return lines.texts.map((text, line) => {
                const runs = lines.runs[line] ?? [0, 0];
                const style = (at) => {
                    let found = 0;
                    for (let run = 0; run < runs.length && runs[run] <= at; run += 2) found = runs[run + 1];
                    const { classes = '', fore = '', back = '' } = lines.styles[found];
                    return [classes, fore, back].filter(Boolean).join(' ');
                };
                return Array.from({ length: text.length }, (_, at) => [text[at], style(at)]);
            });
        };
        const texts = (lines) => lines.map((line) => line.map(([character]) => character).join(''));
        const cases = [
            ['a\r\nb\n\nc', ['a', 'b', '', 'c']],
            ['100%\r5%\x1b[K\n100%\r5%', ['5%', '5%0%']],
            ['ab\x08c\n\x08d', ['ac', 'd']],
            ['a\tb\tc\r\tx', ['a       x       c']],
            ['\x1b[1Gone\x1b[1G\x1b[2Ktwo\n', ['two']],
            ['abc\x1b[2Dx\x1b[5Cy', ['axc    y']],
            ['\x1b]0;title\x07x\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\\n', ['xlink']],
            ['\x1b(B\x1b[?25lx\x1b7\x1b[2A\x1bPq#0\x1b\\y\x07\x00\x85', ['xy']],
            ['\x1b]never ended\nnext', ['', 'next']],
            ['\u{1f600}\u{1f600}\rab', ['ab\u{1f600}']],
            ['\x1b[31mabcdef\x1b[0m\rX\x1b[32mY\x1b[39m\n', ['XYcdef']],
            ['\x1b[38:2::1:2:3;4ma\x1b[24;48;5;250mb\x1b[7mc\x1b[27;39;49;1;2;3md\x1b[22;23me\n', ['abcde']],
        ];
        for (const [text, expected] of cases) {
            const whole = shown(text);
            assert.deepEqual(texts(whole), expected, JSON.stringify(text));
            for (let at = 0; at <= text.length; at++) assert.deepEqual(shown(text.slice(0, at), text.slice(at)), whole);
            assert.deepEqual(shown(...text.split('')), whole);
        }
        assert.deepEqual(shown(cases.at(-2)[0])[0].map(([, style]) => style), ['', 'var(--c2)', ...Array(4).fill('var(--c1)')]);
        assert.deepEqual(shown(cases.at(-1)[0])[0].map(([, style]) => style), [
            'underline rgb(1 2 3)',
            'rgb(1 2 3) rgb(188 188 188)',
            'rgb(188 188 188) rgb(1 2 3)',
            'bold dim italic',
            '',
        ]);
        // Nothing that a line holds makes the next ones wait, or is lost.
        const long = shown('x'.repeat(40_000) + '\r' + 'y\n');
        assert.deepEqual([long.length, long.flat().length], [3, 40_000]);
        assert.deepEqual(texts(shown(`\x1b]${'z'.repeat(10_000)}`, '\nnext')).at(-1), 'next');
    },

    async check_any_number_of_colours_needs_a_bounded_number_of_styles() {
        const source = readFileSync(join(repo, 'src/web/lines.js'), 'utf8');
        const { Lines } = await import(`data:text/javascript,${encodeURIComponent(source)}`);
        const lines = new Lines();
        const channels = (n) => [n >> 16, n >> 8, n].map((part) => part & 255);
        const colour = (n) => lines.styles[lines.runs[n][1]];
        const count = 100_000;
        // Well distributed; each with a style and a background of its own.
        const fore = (n) => channels((n * 10_368_889) & 0xffffff);
        const back = (n) => channels((n * 7_368_787 + 1) & 0xffffff);
        for (let n = 0; n < count; n++) {
            lines.write(`\x1b[0;${n % 2};${3 + (n >> 1) % 2};38;2;${fore(n).join(';')};48;2;${back(n).join(';')}mx\n`);
        }
        assert.ok(lines.styles.length > 4096 && lines.styles.length < 50_000, `${lines.styles.length} styles`);
        for (const [from, to, off] of [[0, 4000, 0], [4200, 16_000, 26], [16_000, count, 128]]) {
            for (let n = from; n < to; n += 97) {
                for (const [told, shown] of [[fore(n), colour(n).fore], [back(n), colour(n).back]]) {
                    const parts = shown.match(/\d+/g).map(Number);
                    const most = Math.max(...parts.map((part, at) => Math.abs(part - told[at])));
                    assert.ok(most <= off, `${n}: ${shown} for ${told}`);
                }
            }
        }
        // What is known stays as it is.
        lines.write(`\x1b[0;0;3;38;2;${fore(0).join(';')};48;2;${back(0).join(';')}mx\x1b[0;31my\n`);
        assert.deepEqual(lines.runs.at(-1).filter((_, at) => at % 2).map((style) => lines.styles[style].fore), [
            colour(0).fore,
            'var(--c1)',
        ]);
    },

    async check_what_grows_for_long_loses_its_beginning() {
        const appender = main.append('growing.log');
        const text = (from, to) => Array.from({ length: to - from }, (_, n) => `line ${String(from + n).padStart(6, '0')}\n`).join('');
        appender.write(text(0, 1000));
        await arrived(main, '/growing.log', 12_000);
        const page = await newPage();
        // As with a log of hundreds of megabytes.
        await page.route('**/view.js', async (route) => {
            const body = readFileSync(join(repo, 'src/web/view.js'), 'utf8').replace('128 * 1024 * 1024', '60_000');
            await route.fulfill({ body, contentType: 'text/javascript' });
        });
        await page.goto(`${main.url}/growing.log?view`);
        await showsRow(page, 'line 000999');
        await page.fill('#query', 'line 00');
        await page.waitForFunction(() => document.getElementById('hits').textContent.endsWith('/1,000'));
        for (let from = 1000; from < 15_000; from += 1000) {
            appender.write(text(from, from + 1000));
            await page.waitForFunction((count) => document.getElementById('size').dataset.lines === count, String(from + 1000));
        }
        await page.focus('#log');
        await page.keyboard.press('End');
        await showsRow(page, 'line 014999');
        assert.equal(await shownBytes(page), 180_000);
        await page.keyboard.press('Home');
        await page.waitForFunction(() => document.getElementById('log').scrollTop === 0);
        await answers(page);
        const [first] = await rows(page);
        assert.match(first, /^line 0\d{5}$/);
        const missing = Number(first.slice(5));
        assert.ok(missing >= 5_000 && missing < 11_000, `begins with ${first}`);
        assert.equal(await page.$eval('#rows > div', (row) => row.dataset.line), String(missing));
        const left = Math.max(0, 10_000 - missing).toLocaleString('en');
        await page.waitForFunction((left) => document.getElementById('hits').textContent === left, left);
        await appender.finish();
        await badge(page, 'finished');
        await closePage(page);
    },

    async check_long_lines_wrap_at_the_windows_width() {
        const long = Array.from({ length: 100 }, (_, n) => `word${n}`).join(' ');
        await main.put('long.log', `first\n\x1b[32m${long}\x1b[0m\n${'日本語'.repeat(60)}\nlast\n`);
        const page = await view(main, 'long.log');
        await badge(page, 'finished');
        await showsRow(page, 'last');
        const wrapped = await rows(page);
        assert.ok(wrapped.length > 8, `${wrapped.length} rows`);
        assert.equal(wrapped.join(''), `first${long}${'日本語'.repeat(60)}last`);
        const wide = await page.$$eval('#rows > div', (rows) => Math.max(...rows.map((row) => row.scrollWidth)));
        assert.ok(wide <= 900, `a row is ${wide} wide`);
        // All of it is copied as four lines.
        const copied = await page.evaluate(() => {
            getSelection().selectAllChildren(document.getElementById('rows'));
            const clipboardData = new DataTransfer();
            document.getElementById('log').dispatchEvent(new ClipboardEvent('copy', { clipboardData, bubbles: true, cancelable: true }));
            return clipboardData.getData('text/plain');
        });
        assert.equal(copied, `first\n${long}\n${'日本語'.repeat(60)}\nlast`);
        await page.click('#wrap');
        await page.waitForFunction(() => document.querySelectorAll('#rows > div').length === 4);
        assert.deepEqual(await rows(page), ['first', long, '日本語'.repeat(60), 'last']);
        const scrolls = await page.$eval('#log', (log) => log.scrollWidth > log.clientWidth);
        assert.ok(scrolls, 'it can be scrolled sideways');
        await page.setViewportSize({ width: 400, height: 700 });
        await page.click('#wrap');
        await page.waitForFunction((count) => document.querySelectorAll('#rows > div').length > count, wrapped.length);
        assert.equal((await rows(page)).join(''), wrapped.join(''));
        await closePage(page);
    },

    async check_search_finds_and_steps() {
        const lines = Array.from({ length: 5000 }, (_, n) => `line ${n}${n % 1000 === 7 ? ' the Needle.* is here' : ''}`);
        await main.put('hay.log', lines.join('\n'));
        const page = await view(main, 'hay.log');
        await badge(page, 'finished');
        await page.keyboard.press('Control+f');
        await page.keyboard.type('needle.*');
        const at = (text) => page.waitForFunction((text) => document.getElementById('hits').textContent === text, text);
        const here = async () => (await page.waitForSelector('mark.here')).evaluate((mark) => [mark.textContent, mark.parentNode.textContent]);
        // Where typing was slow, its beginning has been searched for first.
        await page.waitForFunction(() => document.querySelector('mark.here')?.textContent === 'Needle.*');
        await at('5/5');
        assert.deepEqual(await here(), ['Needle.*', 'line 4007 the Needle.* is here']);
        await page.keyboard.press('Enter');
        await at('1/5');
        await showsRow(page, 'line 7 the Needle.* is here');
        await page.keyboard.press('Shift+Enter');
        await page.keyboard.press('Shift+Enter');
        await at('4/5');
        await showsRow(page, 'line 3007 the Needle.* is here');
        const visible = await page.$eval('mark.here', (mark) => {
            const [box, window] = [mark, document.getElementById('log')].map((of) => of.getBoundingClientRect());
            return box.top >= window.top && box.bottom <= window.bottom;
        });
        assert.ok(visible, 'the hit is to be seen');
        await page.fill('#query', 'nothing of the kind');
        await at('0');
        await page.keyboard.press('Escape');
        await at('');
        assert.equal(await page.$('mark'), null);
        await closePage(page);
    },

    async check_following_stops_and_goes_on() {
        const appender = main.append('tail.log');
        const write = (from, to) => {
            for (let n = from; n < to; n++) appender.write(`line ${n}\n`);
        };
        write(0, 1000);
        await arrived(main, '/tail.log', 8890);
        const page = await view(main, 'tail.log');
        await badge(page, 'live');
        await showsRow(page, 'line 999');
        const top = () => page.$eval('#log', (log) => log.scrollTop);
        await page.hover('#log');
        await page.mouse.wheel(0, -2000);
        await page.waitForSelector('#end:not([hidden])');
        await page.waitForFunction(() => document.getElementById('pause').getAttribute('aria-pressed') === 'true');
        const stays = await top();
        write(1000, 1500);
        await page.waitForFunction(() => document.getElementById('size').dataset.lines === '1500');
        await answers(page);
        assert.equal(await top(), stays);
        assert.match(await page.textContent('#end'), /500 new/);
        await page.click('#end');
        await showsRow(page, 'line 1499');
        write(1500, 1600);
        await showsRow(page, 'line 1599');
        await page.keyboard.press('Home');
        await showsRow(page, 'line 0');
        await page.keyboard.press('End');
        await showsRow(page, 'line 1599');
        await page.click('#pause');
        write(1600, 1700);
        await page.waitForFunction(() => document.getElementById('size').dataset.lines === '1700');
        await answers(page);
        assert.ok(!(await rows(page)).includes('line 1699'));
        await page.click('#pause');
        await showsRow(page, 'line 1699');
        await appender.finish();
        await badge(page, 'finished');
        await closePage(page);
    },

    async check_dark_and_light() {
        const back = (page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
        const page = await view(main, 'lines.txt', { colorScheme: 'dark' });
        assert.equal(await back(page), 'rgb(20, 23, 26)');
        await page.click('#theme');
        assert.equal(await back(page), 'rgb(255, 255, 255)');
        await page.reload();
        assert.equal(await back(page), 'rgb(255, 255, 255)');
        await page.click('#theme');
        assert.equal(await back(page), 'rgb(20, 23, 26)');
        await closePage(page);
        const light = await view(main, 'lines.txt', { colorScheme: 'light' });
        assert.equal(await back(light), 'rgb(255, 255, 255)');
        await closePage(light);
    },

    async check_the_viewer_goes_on_exactly_after_a_restart() {
        const appender = main.append('restart.log');
        const text = (from, to) => Array.from({ length: to - from }, (_, n) => `\x1b[3${n % 8}mline\x1b[0m ${from + n}\n`).join('');
        appender.write(text(0, 20_000));
        await arrived(main, '/restart.log', text(0, 20_000).length);
        const page = await view(main, 'restart.log');
        await showsRow(page, 'line 19999');
        await main.kill();
        await badge(page, 'connecting');
        appender.write(text(20_000, 40_000));
        await main.start();
        await showsRow(page, 'line 39999');
        await badge(page, 'live');
        await appender.finish();
        await badge(page, 'finished');
        const stored = main.stored('restart.log');
        assert.equal(stored.toString(), text(0, 40_000));
        assert.equal(await shownBytes(page), stored.length);
        assert.equal(await page.$eval('#size', (size) => size.dataset.lines), '40000');
        await closePage(page);
    },

    async check_fifty_megabytes_are_shown_without_freezing() {
        const line = (n) => `2026-01-01T00:00:00Z \x1b[32mINFO\x1b[0m request ${n} took ${n % 977} ms and is told of at some length\n`;
        let data = '';
        let count = 0;
        for (; data.length < 50_000_000; count++) data += line(count);
        writeFileSync(join(main.root, 'fifty.log'), data);
        const page = await newPage();
        // What each frame shows while it is loaded.
        await page.addInitScript(() => {
            const seen = (window.seen = { partly: 0, rows: 0, longest: 0 });
            let last;
            requestAnimationFrame(function look(now) {
                const state = document.getElementById('state');
                const size = document.getElementById('size')?.value ?? '0';
                seen.rows = Math.max(seen.rows, document.querySelectorAll('#rows > div').length);
                if (state && size !== '0' && !('whole' in state.dataset)) {
                    seen.partly++;
                    seen.longest = Math.max(seen.longest, now - (last ?? now));
                }
                last = now;
                requestAnimationFrame(look);
            });
        });
        await page.goto(`${main.url}/fifty.log?view`);
        await badge(page, 'finished');
        const seen = await page.evaluate(() => window.seen);
        assert.ok(seen.partly >= 3 && seen.longest < 5000 && seen.rows < 200, JSON.stringify(seen));
        assert.equal(await shownBytes(page), data.length);
        assert.equal(await page.$eval('#size', (size) => Number(size.dataset.lines)), count);
        await showsRow(page, line(count - 1).replace(/\x1b\[\d*m/g, '').trimEnd());
        await page.keyboard.press('Home');
        await showsRow(page, line(0).replace(/\x1b\[\d*m/g, '').trimEnd());
        await page.fill('#query', 'request 123456 ');
        await page.waitForFunction(() => document.getElementById('hits').textContent === '1/1');
        await showsRow(page, line(123_456).replace(/\x1b\[\d*m/g, '').trimEnd());
        // Steps in what is taller than elements can be.
        await page.hover('#log');
        const first = () => page.$eval('#rows > div', (row) => Number(row.dataset.line));
        const before = await first();
        await page.mouse.wheel(0, 200);
        await page.waitForFunction((line) => Number(document.querySelector('#rows > div').dataset.line) === line, before + 10);
        assert.ok((await page.$$('#rows > div')).length < 200);
console.log(`   (${count} lines, ${seen.partly} frames meanwhile, the longest after ${Math.round(seen.longest)} ms)`);
        await closePage(page);
    },

    async check_millions_of_lines() {
        const count = 3_000_000;
        let data = '';
        for (let n = 0; n < count; n++) data += `${n}\n`;
        writeFileSync(join(main.root, 'millions.log'), data);
        const page = await view(main, 'millions.log');
        await badge(page, 'finished');
        await showsRow(page, `${count - 1}`);
        // The middle of the scroll bar is the middle of the log.
        await page.$eval('#log', (log) => (log.scrollTop = (log.scrollHeight - log.clientHeight) / 2));
        await page.waitForFunction((middle) => {
            const line = Number(document.querySelector('#rows > div').textContent);
            return Math.abs(line - middle) < 1000;
        }, count / 2);
        await page.keyboard.press('End');
        await showsRow(page, `${count - 1}`);
        await page.keyboard.press('Home');
        await showsRow(page, '0');
        assert.ok((await page.$$('#rows > div')).length < 200);
        await closePage(page);
    },

    async check_a_longer_log_shows_its_end_and_says_so() {
        const chunk = Buffer.from(`${'x'.repeat(99)}\n`.repeat(10_000));
        const data = Buffer.concat([...Array(150).fill(chunk), Buffer.from('the end\n')]);
        writeFileSync(join(main.root, 'huge.log'), data);
        const page = await view(main, 'huge.log');
        await page.waitForSelector('#state[data-state=finished][data-whole]', { timeout: 50_000 });
        await showsRow(page, 'the end');
        assert.equal(await shownBytes(page), data.length);
        assert.match(await page.textContent('#note'), /first 15\.1 MiB are left out/);
        await closePage(page);
    },

    async check_a_log_of_short_lines_is_bounded_too() {
        const count = 25_000_000;
        writeFileSync(join(main.root, 'empty.log'), Buffer.alloc(count, '\n'));
        const page = await view(main, 'empty.log');
        await page.waitForSelector('#state[data-state=finished][data-whole]', { timeout: 50_000 });
        await page.waitForFunction((count) => document.getElementById('size').dataset.lines === count, String(count));
        assert.match(await page.textContent('#note'), /^The first [12]\d,\d{3},\d{3} lines are left out/);
        const [line] = await page.$$eval('#rows > div:last-child', (rows) => rows.map((row) => Number(row.dataset.line)));
        assert.equal(line, count - 1);
        await page.focus('#log');
        await page.keyboard.press('Home');
        await page.waitForFunction((count) => Number(document.querySelector('#rows > div').dataset.line) < count - 4_000_000, count);
        const first = await page.$eval('#rows > div', (row) => Number(row.dataset.line));
        assert.ok(count - first <= 10_100_000, `${count - first} lines are left`);
        await closePage(page);
    },

    async check_a_proxy_may_take_a_prefix_away() {
        const proxy = http.createServer();
        // Asks the server for what is behind the prefix, as the page's own host.
        const ask = ({ method, url, headers }) => {
            const path = url.startsWith('/logs/') ? url.slice('/logs'.length) : '/outside-of-the-prefix';
            return http.request({ host: '127.0.0.1', port: main.port, method, path, headers }).on('error', () => {}).end();
        };
        proxy.on('request', (request, response) => {
            ask(request).on('response', (answer) => answer.pipe(response.writeHead(answer.statusCode, answer.headers)));
        });
        proxy.on('upgrade', (request, socket) => {
            ask(request).on('upgrade', (answer, upstream, head) => {
                const headers = Object.entries(answer.headers).map(([name, value]) => `${name}: ${value}\r\n`);
                socket.write(`HTTP/1.1 101 Switching Protocols\r\n${headers.join('')}\r\n`);
                upstream.unshift(head);
                upstream.on('error', () => {}).pipe(socket.on('error', () => {})).pipe(upstream);
            });
        });
        await once(proxy.listen(0, '127.0.0.1'), 'listening');
        await main.put('behind/a/proxy.log', 'through\n');
        const page = await newPage();
        await page.goto(`http://127.0.0.1:${proxy.address().port}/logs/behind/`);
        await page.click('text=a/proxy.log');
        await badge(page, 'finished');
        assert.deepEqual(await rows(page), ['through']);
        assert.equal(await (await page.request.get(await page.$eval('#raw', (link) => link.href))).text(), 'through\n');
        assert.deepEqual(page.said, []);
        await closePage(page);
        proxy.close();
        proxy.closeAllConnections();
    },

    async check_the_listing_tells_what_is_live() {
        const appender = main.append('shelf/now playing.log');
        appender.write('x\n');
        await main.put('shelf/<b>&"done".log', 'y\n');
        await main.put('turned/\u202egol.exe', 'x');
        await arrived(main, '/shelf/now%20playing.log', 2);
        const page = await newPage();
        await page.goto(`${main.url}/shelf/`);
        const cells = await page.$$eval('tr:has(td)', (rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent)));
        assert.deepEqual(cells.map(([name, state, size]) => [name, state, size]), [
            ['now playing.log', 'live', '2'],
            ['<b>&"done".log', 'finished', '2'],
        ]);
        assert.match(cells[1][3], /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$/);
        await page.click('text=<b>');
        await badge(page, 'finished');
        assert.deepEqual(await rows(page), ['y']);
        await page.goto(`${main.url}/`);
        await page.click('text=shelf/now playing.log');
        await badge(page, 'live');
        await appender.finish();
        await badge(page, 'finished');
        // What turns a name's direction turns nothing else.
        await page.goto(`${main.url}/turned/`);
        const isolated = await page.$eval('td a', (link) => {
            const name = link.querySelector('bdi');
            return [name.textContent === link.textContent, getComputedStyle(name).unicodeBidi];
        });
        assert.deepEqual(isolated, [true, 'isolate']);
        await closePage(page);
        assert.equal((await fetch(`${main.url}/nowhere/`)).status, 404);
        const closed = await new Server('unlisted').start();
        assert.equal((await fetch(`${closed.url}/`)).status, 404);
        await closed.kill();
    },
};

async function screenshots() {
    const picture = (page, name) => page.screenshot({ path: join(repo, `src/docs/${name}.png`) });
    const appender = main.append('deploy.log');
    const e = (code, text) => `\x1b[${code}m${text}\x1b[0m`;
    const text =
        `${e('1;34', '==>')} ${e(1, 'Building release 4.2.0')}\n` +
            `   ${e('1;32', 'Compiling')} bytes v1.11.1\n   ${e('1;32', 'Compiling')} tower v0.5.3\n` +
            `   ${e('1;32', 'Compiling')} httpfstream v0.1.0\n` +
            `${e('1;33', 'warning')}${e(1, ': unused variable: `retries`')}\n  ${e('1;34', '-->')} src/main.rs:41:9\n` +
            `    ${e('1;32', 'Finished')} release profile in 48.31s\n` +
            `${e('1;34', '==>')} ${e(1, 'Running 212 tests')}\n` +
            `test append::resumes_after_a_kill ... ${e(32, 'ok')}\ntest follow::exact_across_restarts ... ${e(32, 'ok')}\n` +
            `test follow::a_stalled_reader ... ${e(31, 'FAILED')}\n` +
            `${e('7', ' retry 1 of 3 ')} test follow::a_stalled_reader ... ${e(32, 'ok')}\n` +
            `${e('38;5;208', '212 passed')}; 0 failed; finished in ${e('38;2;120;80;220', '9.31s')}\n` +
            `${e('1;34', '==>')} ${e(1, 'Uploading')}\n  3%\r 28%\r\x1b[36m[##############            ]\x1b[0m  54%`;
    appender.write(text);
    await arrived(main, '/deploy.log', text.length);
    for (const [name, colorScheme] of [['view-live', 'light'], ['view-dark', 'dark']]) {
        const page = await view(main, 'deploy.log', { colorScheme });
        await badge(page, 'live');
        await showsRow(page, '[##############            ]  54%');
        if (name === 'view-dark') {
            await page.fill('#query', 'follow');
            await page.waitForFunction(() => document.getElementById('hits').textContent === '3/3');
            await page.waitForSelector('mark.here');
        }
        await picture(page, name);
        await closePage(page);
    }
    appender.write('\r\x1b[36m[##########################]\x1b[0m 100%\n');
    await appender.finish();
    const colours = [32, 34, 35, 36];
    const long = Array.from({ length: 26 }, (_, n) => e(colours[n % 4], `--cfg=feature_${n}`)).join(' ');
    await main.put(
        'link.log',
        `${e('1;34', '$')} ${e(1, 'make')} link\n${e(32, 'rustc')} ${long} ${e('1;4', 'src/lib.rs')}\n` +
            `${e('1;31', 'error')}${e(1, ': linking with `cc` failed: exit status: 1')}\n` +
            `  = note: ${e('41;97', ` undefined reference to \`frob_${'x'.repeat(120)}\` `)}\n` +
            `${e(2, 'make: *** [Makefile:12: link] Error 1')}\n`,
    );
    const page = await view(main, 'link.log', { colorScheme: 'light' });
    await badge(page, 'finished');
    await showsRow(page, 'make: *** [Makefile:12: link] Error 1');
    await picture(page, 'view-wrapped');
    await closePage(page);
}

let code = 0;
let current = '';
try {
    const only = flags.filter((flag) => !flag.startsWith('--'));
    const all = { ...checks, ...plain, ...websockets };
    const names = Object.keys(all).filter((name) => only.length === 0 || only.some((part) => name.includes(part)));
    if (names.length === 0) throw new Error('no checks');
    for (const name of names) {
        current = name;
        const from = performance.now();
        await within(all[name](), 'the end of the check', 60_000);
        console.log(`ok ${name} (${((performance.now() - from) / 1000).toFixed(1)} s)`);
    }
    current = 'screenshots';
    if (flags.includes('--screenshots')) await screenshots();
    console.log(`browser.mjs: ${names.length} passed, 0 failed`);
} catch (error) {
    console.error(`FAILED: ${current}: ${error.stack}`);
    for (const page of browser.contexts().flatMap((context) => context.pages())) console.error(page.url(), page.said);
    code = 1;
} finally {
    await browser.close();
    for (const child of started) child.kill('SIGKILL');
}
process.exit(code);
