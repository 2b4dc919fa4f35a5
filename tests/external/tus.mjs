// Uploads with tus-js-client through a proxy that cuts connections, while curl follows: see tus.sh.
//
// Each function `check_…` or `fault_NN_…` is a check, and all of them run.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import net from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

const [url, root, client] = process.argv.slice(2);
const { Upload } = await import(client);
const origin = new URL(url);
const SIZE = 20_000_000;
const protocols = ['ietf-draft-03', 'ietf-draft-05'];

/**
 * A proxy that lets `cuts[i]` bytes of the client through and then ends that cut's connection: both sides are reset, or
 * with `ghost` only the client's, while the server's stays open and hears nothing more.
 */
async function proxy(cuts, { ghost = false } = {}) {
    const left = [...cuts];
    const ghosts = [];
    const stats = { cut: 0, connections: 0 };
    const server = net.createServer((down) => {
        stats.connections += 1;
        const up = net.connect(origin.port, origin.hostname);
        let passed = 0;
        down.on('data', (bytes) => {
            passed += bytes.length;
            if (left.length > 0 && passed >= left[0]) {
                left.shift();
                stats.cut += 1;
                up.write(bytes.subarray(0, bytes.length >> 1));
                down.removeAllListeners('data').resetAndDestroy();
                if (ghost) ghosts.push(up);
                else up.resetAndDestroy();
                return;
            }
            if (!up.write(bytes)) {
                down.pause();
                up.once('drain', () => down.resume());
            }
        });
        up.on('data', (bytes) => down.write(bytes));
        down.on('end', () => up.end());
        up.on('end', () => down.end());
        down.on('error', () => {});
        up.on('error', () => {});
        down.on('close', () => ghosts.includes(up) || up.destroy());
        up.on('close', () => down.destroy());
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    return {
        url: `http://127.0.0.1:${server.address().port}`,
        stats,
        close() {
            ghosts.forEach((up) => up.destroy());
            server.close();
        },
    };
}

/** Follows with curl; gives all bytes and the exit code. */
function follow(name) {
    const child = spawn('curl', ['-sSN', '--max-time', '50', `${url}/${name}?verb=FOLLOW&wait=20`]);
    const chunks = [];
    child.stdout.on('data', (chunk) => chunks.push(chunk));
    return once(child, 'close').then(([code]) => ({ code, bytes: Buffer.concat(chunks) }));
}

/** Uploads; gives why it had to try again. */
function upload(endpoint, bytes, options) {
    const retried = [];
    return new Promise((resolve, reject) => {
        new Upload(bytes, {
            endpoint,
            retryDelays: [0, 50, 100, 200, 400, 800],
            onShouldRetry(error) {
                const answer = error.originalResponse;
                retried.push(answer ? JSON.parse(answer.getBody()).type.replace('urn:httpfstream:problem:', '') : 'cut');
                return true;
            },
            onError: reject,
            onSuccess: () => resolve(retried),
            ...options,
        }).start();
    });
}

async function head(name) {
    return (await fetch(`${url}/${name}`, { method: 'HEAD' })).headers;
}

async function check(name, options, proxyOptions) {
    const bytes = randomBytes(SIZE);
    // Of a chunk, a request's head is a part too.
    const size = options.chunkSize ?? SIZE;
    const through = await proxy([0.5, 0.3, 0.9, 0.2].map((part) => Math.floor(Math.min(size, SIZE / 4) * part)), proxyOptions);
    const following = follow(name);
    const retried = await upload(`${through.url}/${name}`, bytes, options);
    const followed = await following;
    assert.equal(followed.code, 0, 'the follower noticed');
    assert.ok(followed.bytes.equals(bytes), `the follower got ${followed.bytes.length} bytes, or others`);
    assert.ok(readFileSync(`${root}/${name}`).equals(bytes), 'what is stored differs');
    assert.equal((await head(name)).get('stream-state'), 'finished');
    assert.equal(through.stats.cut, 4);
    assert.ok(retried.length >= 4, `only ${retried} were retried`);
    through.close();
    return retried;
}

async function check_whole_files_are_gone_on_with() {
    for (const protocol of protocols) await check(`whole/${protocol}`, { protocol });
}

async function check_chunks_are_gone_on_with() {
    for (const protocol of protocols) await check(`chunks/${protocol}`, { protocol, chunkSize: 3_000_000 });
}

async function fault_30_an_appender_with_an_id_is_let_in_over_its_ghost() {
    for (const protocol of protocols) {
        for (const chunkSize of [Infinity, 3_000_000]) {
            const headers = { 'Appender-Id': randomBytes(18).toString('base64url') };
            const options = { protocol, chunkSize, headers };
            const retried = await check(`ghosts/${protocol}/${chunkSize}`, options, { ghost: true });
            // At once: never as somebody else. What its ghost had sent can arrive behind its HEAD, but then it is fenced.
            assert.ok(retried.every((why) => why === 'cut' || why === 'offset') && retried.length <= 8, `${retried}`);
        }
    }
}

async function fault_24_an_abandoned_upload_ends_its_follower_as_cut() {
    for (const protocol of protocols) {
        const name = `abandoned/${protocol}`;
        const bytes = randomBytes(SIZE);
        const through = await proxy([SIZE / 2]);
        const following = follow(name);
        const began = Date.now();
        await assert.rejects(upload(`${through.url}/${name}`, bytes, { protocol, retryDelays: null }));
        while ((await head(name)).get('stream-state') === 'live') await sleep(20);
        assert.equal((await head(name)).get('stream-state'), 'lost');
        const followed = await following;
        assert.equal(followed.code, 18);
        assert.ok(Date.now() - began > 2_500, 'without its grace');
        assert.ok(followed.bytes.length > 0 && followed.bytes.equals(bytes.subarray(0, followed.bytes.length)));
        const now = await head(name);
        assert.equal(now.get('stream-state'), 'interrupted');
        assert.equal(now.get('upload-offset'), String(followed.bytes.length));
        assert.equal(now.get('upload-complete'), '?0');
        through.close();
        // Later it is gone on with all the same.
        await upload(undefined, bytes, { protocol, uploadUrl: `${url}/${name}` });
        assert.ok(readFileSync(`${root}/${name}`).equals(bytes));
    }
}

async function check_an_upload_that_exists_is_refused() {
    for (const protocol of protocols) {
        const name = `exists/${protocol}`;
        await upload(`${url}/${name}`, Buffer.from('mine'), { protocol });
        await assert.rejects(upload(`${url}/${name}`, Buffer.from('yours'), { protocol, retryDelays: null }), (error) => {
            assert.equal(error.originalResponse.getStatus(), 409);
            return true;
        });
        assert.equal(readFileSync(`${root}/${name}`, 'utf8'), 'mine');
    }
}

async function check_an_upload_can_be_terminated() {
    const name = 'terminated';
    let one;
    await new Promise((resolve, reject) => {
        one = new Upload(Buffer.alloc(1_000_000, 'x'), {
            endpoint: `${url}/${name}`,
            protocol: 'ietf-draft-05',
            chunkSize: 300_000,
            onChunkComplete: () => one.abort().then(resolve, reject),
            onError: reject,
        });
        one.start();
    });
    assert.equal((await head(name)).get('stream-state'), 'parked');
    const answer = await fetch(one.url, { method: 'DELETE' });
    assert.equal(answer.status, 204);
    assert.equal((await fetch(one.url, { method: 'HEAD' })).status, 404);
}

const checks = [
    check_whole_files_are_gone_on_with,
    check_chunks_are_gone_on_with,
    fault_30_an_appender_with_an_id_is_let_in_over_its_ghost,
    fault_24_an_abandoned_upload_ends_its_follower_as_cut,
    check_an_upload_that_exists_is_refused,
    check_an_upload_can_be_terminated,
];
for (const one of checks) {
    const late = sleep(30_000, null, { ref: false }).then(() => {
        throw new Error(`${one.name} takes too long`);
    });
    await Promise.race([one(), late]);
    console.log(`ok ${one.name}`);
}
console.log(`tus.mjs: ${checks.length} passed, 0 failed`);
process.exit(0);
