// Verify a Sigstore bundle that was made with a certificate, over a file, with npm's @sigstore/verify and a trusted root:
//
//   npm ci && node verify-certificate.cjs ARTIFACT BUNDLE TRUSTED_ROOT IDENTITY ISSUER
//
// IDENTITY is what the certificate names (an e-mail address or a URI), ISSUER who vouched for it. Prints VERIFIED and ends with 0, or
// prints FAILED with the reason and ends with 1; 2 when the command line or a file cannot be read. Independent of lifeboat: nothing here
// may call it.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const { bundleFromJSON } = require('@sigstore/bundle');
const { TrustedRoot } = require('@sigstore/protobuf-specs');
const { toSignedEntity, toTrustMaterial, Verifier } = require('@sigstore/verify');

function check(condition, message) {
  if (!condition) throw new Error(message);
}

function verify(artifact, bundleText, rootText, identity, issuer) {
  const root = TrustedRoot.fromJSON(JSON.parse(rootText));
  const bundle = bundleFromJSON(JSON.parse(bundleText));
  check(bundle.content.$case === 'dsseEnvelope', 'not a DSSE envelope');
  // What the root knows is demanded: an entry of a log, a promise of a certificate log. Somebody has to say when, in any case.
  const demanded = { tlogThreshold: Math.min(root.tlogs.length, 1), ctlogThreshold: Math.min(root.ctlogs.length, 1), timestampThreshold: 1 };
  const verifier = new Verifier(toTrustMaterial(root), demanded);
  verifier.verify(toSignedEntity(bundle, artifact), { subjectAlternativeName: identity, extensions: { issuer } });
  // The rest @sigstore/verify leaves to its caller: it would accept this envelope for any file.
  const statement = JSON.parse(bundle.content.dsseEnvelope.payload.toString('utf8'));
  const digest = crypto.createHash('sha256').update(artifact).digest('hex');
  const subject = statement.subject.find((one) => one.digest.sha256 === digest);
  check(subject, `no subject has the digest of the file, sha256 ${digest}`);
  return `${statement.predicateType} ${subject.name}`;
}

const [artifact, bundle, root, identity, issuer, ...more] = process.argv.slice(2);
if (!issuer || more.length > 0) {
  console.error('usage: node verify-certificate.cjs ARTIFACT BUNDLE TRUSTED_ROOT IDENTITY ISSUER');
  process.exit(2);
}
let read;
try {
  read = [fs.readFileSync(artifact), fs.readFileSync(bundle, 'utf8'), fs.readFileSync(root, 'utf8')];
} catch (error) {
  console.error(error.message);
  process.exit(2);
}
try {
  console.log(`VERIFIED ${verify(...read, identity, issuer)}`);
} catch (error) {
  console.log(`FAILED ${error.code ?? error.name}: ${error.message}`);
  process.exitCode = 1;
}
