// A Sigstore instance on loopback, small but whole: certificate authority (Fulcio), certificate transparency log, transparency log (Rekor 1
// and 2), timestamp authority (RFC 3161). Certificates, promises and timestamps are made by npm's @sigstore/mock, whose log answers what it
// was asked instead of what a log holds; so the log is written here.
//
//   node server.cjs NODE_MODULES DIRECTORY
//
// Writes trusted_root.json, signing configs and the like into DIRECTORY, prints its URL on a line, and ends when its standard input does.
// A line of JSON on standard input changes how it behaves, and is answered with a line; see `commands`.
//
// What verifiers insist on, each in its own way:
// - the log's name in a checkpoint is the host name of its URL without the port (sigstore-go: equal, sigstore-js: contained);
// - a timestamp has no fraction of a second (the der crate of Rust refuses one, though RFC 3161 allows it);
// - Rekor 2 has no entries of its own for envelopes: the digest of what was signed is entered (hashedrekord 0.0.2);
// - gh wants the claims of a workflow in the certificate.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');
const readline = require('node:readline');

const [modules, directory] = process.argv.slice(2);
const load = (name) => require(require.resolve(name, { paths: [modules] }));
const mock = load('@sigstore/mock');
const asn1js = load('asn1js');
const canonicalize = load('canonicalize');
const pkijs = load('pkijs');

const HOST = '127.0.0.1';
const ISSUER = 'https://issuer.lifeboat.test';
const START = '2020-01-01T00:00:00Z';
const SHA256_OID = '2.16.840.1.101.3.4.2.1';
const POLICY_OID = '1.3.6.1.4.1.57264.2';

const base64 = (bytes) => Buffer.from(bytes).toString('base64');
const sha256 = (...parts) => crypto.createHash('sha256').update(Buffer.concat(parts)).digest();
const newKey = () => crypto.generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
const spki = (key) => key.publicKey.export({ type: 'spki', format: 'der' });

// Seconds that the clocks of the authorities are ahead; requests that fail, by path; requests seen, by path.
const ahead = { ca: 0, tsa: 0, log: 0 };
const failing = new Map();
const seen = new Map();
const now = (whose) => new Date(Math.floor(Date.now() / 1000 + ahead[whose]) * 1000);

// An append-only Merkle tree (RFC 6962), in memory.
class Tree {
  leaves = [];

  root(leaves = this.leaves) {
    if (leaves.length === 0) return sha256(Buffer.alloc(0));
    if (leaves.length === 1) return leaves[0];
    const split = Tree.split(leaves.length);
    return sha256(Buffer.from([1]), this.root(leaves.slice(0, split)), this.root(leaves.slice(split)));
  }

  path(index, leaves = this.leaves) {
    if (leaves.length <= 1) return [];
    const split = Tree.split(leaves.length);
    const [left, right] = [leaves.slice(0, split), leaves.slice(split)];
    return index < split ? [...this.path(index, left), this.root(right)] : [...this.path(index - split, right), this.root(left)];
  }

  append(body) {
    this.leaves.push(sha256(Buffer.from([0]), body));
    return this.leaves.length - 1;
  }

  // The largest power of two that is smaller.
  static split(count) {
    return 2 ** Math.floor(Math.log2(count - 1));
  }
}

// A transparency log that answers as both versions of Rekor do.
class Log {
  tree = new Tree();
  key = newKey();

  id() {
    return sha256(spki(this.key));
  }

  sign(bytes) {
    return crypto.sign('sha256', bytes, this.key.privateKey);
  }

  enter(body) {
    const bytes = Buffer.from(canonicalize(body));
    const index = this.tree.append(bytes);
    const [size, root] = [this.tree.leaves.length, this.tree.root()];
    const note = `${HOST}\n${size}\n${base64(root)}\n`;
    const signature = base64(Buffer.concat([this.id().subarray(0, 4), this.sign(Buffer.from(note))]));
    const checkpoint = `${note}\n\u2014 ${HOST} ${signature}\n`;
    return { bytes, index, size, root, hashes: this.tree.path(index), checkpoint };
  }

  // "dsse" 0.0.1 and the answer of POST /api/v1/log/entries (rekor, openapi.yaml).
  v1(asked) {
    if (asked.kind !== 'dsse') throw new Refusal(400, `entries of kind ${asked.kind} are not taken here`);
    const { envelope: text, verifiers } = asked.spec.proposedContent;
    const envelope = JSON.parse(text);
    const digest = (bytes) => ({ algorithm: 'sha256', value: sha256(bytes).toString('hex') });
    // As Rekor writes a certificate, whatever spaces it was sent with: sigstore-python compares the text.
    const verifier = base64(new crypto.X509Certificate(Buffer.from(verifiers[0], 'base64')).toString());
    const signatures = envelope.signatures.map(({ sig }) => ({ signature: sig, verifier }));
    const spec = { envelopeHash: digest(Buffer.from(text)), payloadHash: digest(Buffer.from(envelope.payload, 'base64')), signatures };
    const { bytes, index, size, root, hashes, checkpoint } = this.enter({ apiVersion: '0.0.1', kind: 'dsse', spec });
    const entry = { body: base64(bytes), integratedTime: now('log').getTime() / 1000, logID: this.id().toString('hex'), logIndex: index };
    const promise = this.sign(Buffer.from(canonicalize(entry)));
    const hex = (hash) => hash.toString('hex');
    const inclusionProof = { checkpoint, hashes: hashes.map(hex), logIndex: index, rootHash: hex(root), treeSize: size };
    return { [crypto.randomBytes(32).toString('hex')]: { ...entry, verification: { inclusionProof, signedEntryTimestamp: base64(promise) } } };
  }

  // "hashedrekord" 0.0.2 and the answer of POST /api/v2/log/entries (rekor-tiles, TransparencyLogEntry).
  v2(asked) {
    const request = asked.hashedRekordRequestV002;
    if (!request) throw new Refusal(400, 'only hashed entries are taken here');
    const data = { algorithm: 'SHA2_256', digest: request.digest };
    const body = { apiVersion: '0.0.2', kind: 'hashedrekord', spec: { hashedRekordV002: { data, signature: request.signature } } };
    const { bytes, index, size, root, hashes, checkpoint } = this.enter(body);
    const at = { logIndex: String(index), treeSize: String(size), rootHash: base64(root), hashes: hashes.map(base64) };
    return {
      logIndex: String(index),
      logId: { keyId: base64(this.id()) },
      kindVersion: { kind: 'hashedrekord', version: '0.0.2' },
      integratedTime: '0',
      inclusionProof: { ...at, checkpoint: { envelope: checkpoint } },
      canonicalizedBody: base64(bytes),
    };
  }
}

class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function instance() {
  const [ctKey, caKey, tsaKey] = [newKey(), newKey(), newKey()];
  const ctLog = await mock.initializeCTLog(ctKey);
  const ca = await mock.initializeCA(caKey, ctLog);
  const tsa = await mock.initializeTSA(tsaKey);
  ca.getCurrentTime = () => now('ca');
  tsa.getCurrentTime = () => now('tsa');
  // The mock takes small numbers for nonces only, and has one serial number for all.
  const tstInfo = tsa.tstInfo.bind(tsa);
  tsa.tstInfo = (request) => {
    const info = tstInfo({ ...request, nonce: 1 });
    info.nonce = request.nonce ? new asn1js.Integer({ valueHex: request.nonce }) : undefined;
    info.serialNumber = new asn1js.Integer({ value: crypto.randomInt(2 ** 31 - 1) });
    return info;
  };
  return { ctLog, ca, tsa, log: new Log(), fulcio: mock.fulcioHandler(ca, { strict: true, subjectClaim: 'sub' }) };
}

function trustedRoot({ ctLog, ca, tsa, log }, url) {
  const key = (der) => ({ rawBytes: base64(der), keyDetails: 'PKIX_ECDSA_P256_SHA_256', validFor: { start: START } });
  const logOf = (der, id) => ({ baseUrl: url, hashAlgorithm: 'SHA2_256', publicKey: key(der), logId: { keyId: base64(id) } });
  const chain = (...certificates) => ({ certificates: certificates.map((one) => ({ rawBytes: base64(one) })) });
  const authority = (commonName, certChain) => ({
    subject: { organization: 'lifeboat', commonName },
    uri: url,
    certChain,
    validFor: { start: START },
  });
  return {
    mediaType: 'application/vnd.dev.sigstore.trustedroot+json;version=0.1',
    tlogs: [logOf(spki(log.key), log.id())],
    certificateAuthorities: [authority('sigstore', chain(ca.rootCertificate))],
    ctlogs: [logOf(ctLog.publicKey, ctLog.logID)],
    timestampAuthorities: [authority('tsa', chain(tsa.intCertificate, tsa.rootCertificate))],
  };
}

function signingConfig(url, { rekor, tsa }) {
  const service = (at, majorApiVersion) => ({ url: at, majorApiVersion, validFor: { start: START }, operator: 'lifeboat' });
  return {
    mediaType: 'application/vnd.dev.sigstore.signingconfig.v0.2+json',
    caUrls: [service(url, 1)],
    oidcUrls: [service(`${url}/auth`, 1)],
    rekorTlogUrls: rekor ? [service(url, rekor)] : [],
    rekorTlogConfig: { selector: 'ANY' },
    tsaUrls: tsa ? [service(`${url}/api/v1/timestamp`, 1)] : [],
    tsaConfig: { selector: 'ANY' },
  };
}

// What a job of GitHub Actions gets; nobody looks at its signature here.
function token(subject, seconds) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const at = Math.floor(Date.now() / 1000);
  const claims = {
    iss: ISSUER,
    aud: 'sigstore',
    sub: subject,
    iat: at,
    nbf: at - 5,
    exp: at + seconds,
    repository: 'lifeboat/db',
    repository_owner: 'lifeboat',
    job_workflow_ref: subject.replace('https://github.com/', ''),
    workflow_ref: subject.replace('https://github.com/', ''),
    runner_environment: 'self-hosted',
  };
  return `${part({ alg: 'ES256', typ: 'JWT' })}.${part(claims)}.${part('not a signature')}`;
}

const SUBJECT = 'https://github.com/lifeboat/db/.github/workflows/backup.yml@refs/heads/main';
const OTHER_SUBJECT = 'https://github.com/lifeboat/db/.github/workflows/other.yml@refs/heads/main';

async function certificate(fulcio, body) {
  const asked = JSON.parse(body);
  const jwt = asked.credentials.oidcIdentityToken;
  const claims = JSON.parse(Buffer.from(jwt.split('.')[1], 'base64url'));
  // Said in the worst way, to see that nobody repeats it.
  if (claims.iss !== ISSUER) throw new Refusal(401, `There was an error processing the identity token ${jwt}`);
  const { publicKey, proofOfPossession } = asked.publicKeyRequest;
  if (!crypto.verify('sha256', Buffer.from(claims.sub), publicKey.content, Buffer.from(proofOfPossession, 'base64')))
    throw new Refusal(400, 'the proof of possession is none');
  const answer = await fulcio.fn(body);
  return [answer.statusCode, 'application/json', answer.response];
}

async function timestamp(tsa, body) {
  const request = pkijs.TimeStampReq.fromBER(body);
  const answer = await tsa.timestamp({
    artifactHash: Buffer.from(request.messageImprint.hashedMessage.valueBlock.valueHexView),
    hashAlgorithmOID: SHA256_OID,
    nonce: request.nonce && Buffer.from(request.nonce.valueBlock.valueHexView),
    policyOID: POLICY_OID,
    certReq: Boolean(request.certReq),
  });
  return [201, 'application/timestamp-reply', answer];
}

async function answer({ ca, tsa, log, fulcio }, method, at, body) {
  seen.set(at, (seen.get(at) ?? 0) + 1);
  const failure = failing.get(at);
  if (failure && failure.times > 0) {
    failure.times -= 1;
    throw new Refusal(failure.status, 'out of order');
  }
  const json = (status, value) => [status, 'application/json', JSON.stringify(value)];
  switch (`${method} ${at}`) {
    case 'POST /api/v2/signingCert':
      return certificate(fulcio, body.toString());
    case 'POST /api/v1/log/entries':
      return json(201, log.v1(JSON.parse(body)));
    case 'POST /api/v2/log/entries':
      return json(201, log.v2(JSON.parse(body)));
    case 'POST /api/v1/timestamp':
      return timestamp(tsa, body);
    // As GitHub answers a job that asks for its token.
    case 'GET /token':
      return json(200, { value: token(SUBJECT, 600) });
    default:
      throw new Refusal(404, 'nothing here');
  }
}

// { "fail": PATH, "status": 503, "times": 1 }; { "ahead": "ca" | "tsa" | "log", "seconds": N }; { "count": PATH }.
const commands = {
  fail: ({ fail, status, times }) => void failing.set(fail, { status, times }),
  ahead: ({ ahead: whose, seconds }) => void (ahead[whose] = seconds),
  count: ({ count }) => seen.get(count) ?? 0,
};

async function main() {
  const [ours, other] = [await instance(), await instance()];
  const server = http.createServer((request, response) => {
    const chunks = [];
    request.on('data', (chunk) => chunks.push(chunk));
    request.on('end', async () => {
      let [status, type, content] = [500, 'text/plain', ''];
      try {
        [status, type, content] = await answer(ours, request.method, request.url.split('?')[0], Buffer.concat(chunks));
      } catch (error) {
        [status, content] = [error.status ?? 500, error.status ? error.message : error.stack];
      }
      response.writeHead(status, { 'Content-Type': type });
      response.end(content);
    });
  });
  server.listen(0, HOST, () => {
    const url = `http://${HOST}:${server.address().port}`;
    const write = (name, value) => fs.writeFileSync(path.join(directory, name), typeof value === 'string' ? value : JSON.stringify(value));
    const root = trustedRoot(ours, url);
    write('trusted_root.json', root);
    write('trusted_root.jsonl', `${JSON.stringify(root)}\n`);
    write('other_root.json', trustedRoot(other, url));
    write('signing_config.json', signingConfig(url, { rekor: 2, tsa: true }));
    write('signing_config.rekor1.json', signingConfig(url, { rekor: 1, tsa: false }));
    write('signing_config.tsa.json', signingConfig(url, { rekor: 0, tsa: true }));
    const mediaType = 'application/vnd.dev.sigstore.clienttrustconfig.v0.1+json';
    write('trust_config.json', { mediaType, trustedRoot: root, signingConfig: signingConfig(url, { rekor: 2, tsa: true }) });
    write('token', token(SUBJECT, 3600));
    write('token.other', token(OTHER_SUBJECT, 3600));
    write('token.expired', token(SUBJECT, -60));
    write('token.strange', token(SUBJECT, 3600).replace(/\.[^.]+\./, `.${Buffer.from(JSON.stringify({ iss: 'https://elsewhere', sub: 'x', aud: 'sigstore', exp: 9999999999 })).toString('base64url')}.`));
    console.log(url);
  });
  const input = readline.createInterface({ input: process.stdin });
  input.on('line', (line) => {
    const command = JSON.parse(line);
    const [name] = Object.keys(command).filter((key) => key in commands);
    console.log(JSON.stringify(commands[name](command) ?? null));
  });
  input.on('close', () => process.exit(0));
}

main();
