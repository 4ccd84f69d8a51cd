// Verify a Sigstore bundle over a file with npm's @sigstore/verify and one trusted public key:
//
//   npm ci && node verify.cjs ARTIFACT BUNDLE PUBKEY.pem [TRUSTED_ROOT]
//
// With a trusted root, the bundle has to have a timestamp of one of its authorities.
// Prints VERIFIED and ends with 0, or prints FAILED with the reason and ends with 1; 2 when the command
// line or a file cannot be read. Independent of lifeboat: nothing here may call it.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const { bundleFromJSON } = require('@sigstore/bundle');
const { TrustedRoot } = require('@sigstore/protobuf-specs');
const { toSignedEntity, toTrustMaterial, Verifier } = require('@sigstore/verify');

const PAYLOAD_TYPE = 'application/vnd.in-toto+json';
const STATEMENT_TYPE = 'https://in-toto.io/Statement/v1';

function check(condition, message) {
  if (!condition) throw new Error(message);
}

// How cosign, and lifeboat, name a key: base64 of the SHA-256 of its SubjectPublicKeyInfo.
function hintOf(key) {
  return crypto.createHash('sha256').update(key.export({ type: 'spki', format: 'der' })).digest('base64');
}

function verify(artifact, bundleText, key, rootText) {
  const hint = hintOf(key);
  const bundle = bundleFromJSON(JSON.parse(bundleText));
  check(bundle.content.$case === 'dsseEnvelope', 'not a DSSE envelope');
  check(bundle.verificationMaterial.content.$case === 'publicKey', 'not signed with a key');

  // Without a trusted root, one without authorities: the one key is all that is trusted.
  const root = TrustedRoot.fromJSON(rootText ? JSON.parse(rootText) : { mediaType: 'application/vnd.dev.sigstore.trustedroot+json;version=0.1' });
  const trust = toTrustMaterial(root, (found) => {
    check(found === hint, `key ${JSON.stringify(found)} is not the trusted key ${hint}`);
    return { publicKey: key, validFor: () => true };
  });
  const verifier = new Verifier(trust, { tlogThreshold: 0, ctlogThreshold: 0, timestampThreshold: rootText ? 1 : 0 });
  verifier.verify(toSignedEntity(bundle, artifact));

  // The rest @sigstore/verify leaves to its caller: it would accept this envelope for any file.
  const envelope = bundle.content.dsseEnvelope;
  check(envelope.payloadType === PAYLOAD_TYPE, `payload type is ${envelope.payloadType}`);
  check(envelope.signatures.length === 1, `${envelope.signatures.length} signatures`);
  const keyid = envelope.signatures[0].keyid;
  check(keyid === '' || keyid === hint, `key id is ${JSON.stringify(keyid)}`);
  const statement = JSON.parse(envelope.payload.toString('utf8'));
  check(statement._type === STATEMENT_TYPE, `statement type is ${statement._type}`);
  const digest = crypto.createHash('sha256').update(artifact).digest('hex');
  const subject = statement.subject.find((one) => one.digest.sha256 === digest);
  check(subject, `no subject has the digest of the file, sha256 ${digest}`);
  return `${statement.predicateType} ${subject.name}`;
}

const files = process.argv.slice(2);
if (files.length !== 3 && files.length !== 4) {
  console.error('usage: node verify.cjs ARTIFACT BUNDLE PUBKEY.pem [TRUSTED_ROOT]');
  process.exit(2);
}
let read;
try {
  read = [fs.readFileSync(files[0]), fs.readFileSync(files[1], 'utf8'), crypto.createPublicKey(fs.readFileSync(files[2]))];
  if (files[3]) read.push(fs.readFileSync(files[3], 'utf8'));
} catch (error) {
  console.error(error.message);
  process.exit(2);
}
try {
  console.log(`VERIFIED ${verify(...read)}`);
} catch (error) {
  console.log(`FAILED ${error.code ?? error.name}: ${error.message}`);
  process.exitCode = 1;
}
