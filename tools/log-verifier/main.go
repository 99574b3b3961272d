// log-verifier checks a published log with the code of others: golang.org/x/mod/sumdb, transparency-dev/merkle, Tessera's fsck.
//
// It shares nothing with the programs that wrote the log, so that a mistake there is not repeated here. The log is a directory with
// the files of c2sp.org/tlog-tiles. Checked are, in this order:
//
//  1. the checkpoint is a note that the log's key signed, and every witness that was named    sumdb/note, formats/note
//  2. every entry bundle and every tile of the tree has the bytes that its leaves make        sumdb/tlog
//  3. no file is there that is not part of the tree, or an earlier partial tile of it
//  4. proofs made from the tiles verify for leaves and earlier sizes all over the tree        sumdb/tlog, merkle/proof
//  5. Tessera's fsck finds the log in order                                                   tessera/fsck
//  6. proofs that the service gave (-proofs) verify with both libraries
//
// It prints what it has checked as JSON, or one line that says what is wrong, with exit status 1.
package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"math/bits"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/transparency-dev/formats/log"
	fnote "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/fsck"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"k8s.io/klog/v2"
)

const (
	tileHeight  = 8
	tileWidth   = 1 << tileHeight
	proofHeader = "c2sp.org/tlog-proof@v1"
	algMLDSA44  = 6
)

// summary is what was checked.
type summary struct {
	Size         uint64 `json:"size"`
	Witnesses    int    `json:"witnesses"`
	Tiles        int    `json:"tiles"`
	Bundles      int    `json:"bundles"`
	Partials     int    `json:"earlier_partials"`
	MadeProofs   int    `json:"made_proofs"`
	GivenProofs  int    `json:"given_proofs"`
	FsckFinished bool   `json:"fsck_finished"`
}

// given are proofs of the service: receipts as tlog-proof texts, and consistency proofs up to the published checkpoint or below it.
type given struct {
	Receipts    []string `json:"receipts"`
	Consistency []struct {
		First      uint64   `json:"first"`
		Second     uint64   `json:"second"`
		FirstRoot  []byte   `json:"first_root"`
		SecondRoot []byte   `json:"second_root"`
		Proof      [][]byte `json:"proof"`
	} `json:"consistency"`
}

func main() {
	directory := flag.String("dir", "", "directory with the log's checkpoint")
	origin := flag.String("origin", "", "origin of the log")
	key := flag.String("key", "", "verifier key of the log")
	witnesses := flag.String("witnesses", "", "verifier keys (Ed25519 or ML-DSA-44) of witnesses that must have cosigned, with commas between")
	proofs := flag.String("proofs", "", "file with proofs of the service, JSON")
	flag.Parse()
	klog.LogToStderr(false)
	klog.SetOutput(new(bytes.Buffer))
	slog.SetDefault(slog.New(slog.DiscardHandler))
	found, err := check(*directory, *origin, *key, *witnesses, *proofs)
	if err != nil {
		fmt.Fprintf(os.Stderr, "log-verifier: %v\n", err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
		os.Exit(1)
	}
}

func check(directory, origin, key, witnesses, proofs string) (*summary, error) {
	verifier, err := newLogVerifier(key)
	if err != nil {
		return nil, fmt.Errorf("the key of the log: %w", err)
	}
	found := &summary{}
	checkpoint, err := openCheckpoint(directory, origin, verifier, witnesses, found)
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	found.Size = checkpoint.Size
	tree, err := readTree(directory, checkpoint, found)
	if err != nil {
		return nil, err
	}
	if err := checkFiles(directory, checkpoint.Size, tree, found); err != nil {
		return nil, err
	}
	if err := makeProofs(directory, checkpoint, tree, found); err != nil {
		return nil, err
	}
	if err := runFsck(directory, origin, verifier); err != nil {
		return nil, fmt.Errorf("fsck: %w", err)
	}
	found.FsckFinished = true
	if proofs != "" {
		if err := checkGiven(proofs, origin, verifier, found); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// newLogVerifier reads the key of a log: Ed25519, or ML-DSA-44, with which a log signs as a witness does.
func newLogVerifier(key string) (note.Verifier, error) {
	parts := strings.SplitN(key, "+", 3)
	if len(parts) == 3 {
		if material, err := base64.StdEncoding.DecodeString(parts[2]); err == nil && len(material) > 0 && material[0] == algMLDSA44 {
			return fnote.NewMLDSAVerifier(key)
		}
	}
	return note.NewVerifier(key)
}

func openCheckpoint(directory, origin string, verifier note.Verifier, witnesses string, found *summary) (*log.Checkpoint, error) {
	content, err := os.ReadFile(filepath.Join(directory, "checkpoint"))
	if err != nil {
		return nil, err
	}
	var others []note.Verifier
	for _, key := range strings.FieldsFunc(witnesses, func(r rune) bool { return r == ',' }) {
		witness, err := fnote.NewVerifierForCosignatureV1(key)
		if err != nil {
			return nil, fmt.Errorf("the key of a witness: %w", err)
		}
		others = append(others, witness)
	}
	checkpoint, rest, opened, err := log.ParseCheckpoint(content, origin, verifier, others...)
	if err != nil {
		return nil, err
	}
	if len(rest) != 0 {
		return nil, errors.New("it has lines after the root")
	}
	for _, witness := range others {
		signed := false
		for _, signature := range opened.Sigs {
			signed = signed || (signature.Name == witness.Name() && signature.Hash == witness.KeyHash())
		}
		if !signed {
			return nil, fmt.Errorf("%s has not cosigned it", witness.Name())
		}
		found.Witnesses++
	}
	return checkpoint, nil
}

// wholeTree is a tree computed from its leaves: what the tiles have to say.
type wholeTree struct {
	leaves [][]byte
	hashes []tlog.Hash
}

func (t *wholeTree) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	read := make([]tlog.Hash, len(indexes))
	for position, index := range indexes {
		if index >= int64(len(t.hashes)) {
			return nil, fmt.Errorf("no hash %d", index)
		}
		read[position] = t.hashes[index]
	}
	return read, nil
}

// readTree reads all leaves, computes the tree, and compares its root.
func readTree(directory string, checkpoint *log.Checkpoint, found *summary) (*wholeTree, error) {
	tree := &wholeTree{}
	size := checkpoint.Size
	for index := uint64(0); index*tileWidth < size; index++ {
		width := min(size-index*tileWidth, tileWidth)
		content, name, err := readPartialOrFull(directory, "entries", index, width)
		if err != nil {
			return nil, err
		}
		for range width {
			if len(content) < 2 {
				return nil, fmt.Errorf("%s ends too early", name)
			}
			length := int(binary.BigEndian.Uint16(content))
			if len(content) < 2+length {
				return nil, fmt.Errorf("%s ends too early", name)
			}
			leaf := content[2 : 2+length]
			content = content[2+length:]
			hashes, err := tlog.StoredHashes(int64(len(tree.leaves)), leaf, tree)
			if err != nil {
				return nil, err
			}
			tree.leaves = append(tree.leaves, leaf)
			tree.hashes = append(tree.hashes, hashes...)
		}
		if len(content) != 0 && strings.HasSuffix(name, fmt.Sprintf(".p/%d", width)) {
			return nil, fmt.Errorf("%s goes on after its leaves", name)
		}
		found.Bundles++
	}
	root, err := tlog.TreeHash(int64(size), tree)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(root[:], checkpoint.Hash) {
		return nil, fmt.Errorf("the leaves lead to root %x, and the checkpoint says %x", root, checkpoint.Hash)
	}
	return tree, nil
}

// name of a tile as c2sp.org/tlog-tiles has it. tlog.Tile writes the height first, as the Go checksum database does.
func name(kind string, index, width uint64) string {
	tile := tlog.Tile{H: tileHeight, L: 0, N: int64(index), W: int(width)}
	rest := strings.TrimPrefix(tile.Path(), "tile/8/0/")
	return path.Join("tile", kind, rest)
}

func readPartialOrFull(directory, kind string, index, width uint64) ([]byte, string, error) {
	partial := name(kind, index, width)
	content, err := os.ReadFile(filepath.Join(directory, partial))
	if err == nil || width == tileWidth {
		return content, partial, err
	}
	full := name(kind, index, tileWidth)
	if content, errFull := os.ReadFile(filepath.Join(directory, full)); errFull == nil {
		return content, full, nil
	}
	return nil, partial, err
}

// checkFiles compares every tile with what the leaves make, and every file with what a tree of this size may have.
func checkFiles(directory string, size uint64, tree *wholeTree, found *summary) error {
	for _, tile := range tlog.NewTiles(tileHeight, 0, int64(size)) {
		if tile.L < 0 {
			continue
		}
		want, err := tlog.ReadTileData(tile, tree)
		if err != nil {
			return err
		}
		got, file, err := readPartialOrFull(directory, strconv.Itoa(tile.L), uint64(tile.N), uint64(tile.W))
		if err != nil {
			return err
		}
		if len(got) < len(want) || !bytes.Equal(got[:len(want)], want) {
			return fmt.Errorf("%s has other bytes than the leaves make", file)
		}
		found.Tiles++
	}
	return filepath.WalkDir(directory, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			// A log whose origin begins with this one's lies below it.
			if _, err := os.Stat(filepath.Join(file, "checkpoint")); err == nil && file != directory {
				return fs.SkipDir
			}
			return nil
		}
		relative, err := filepath.Rel(directory, file)
		if err != nil || relative == "checkpoint" {
			return err
		}
		return checkFile(directory, relative, size, tree, found)
	})
}

// checkFile judges a file by its own name: whatever it is, the tree has to have these bytes there.
func checkFile(directory, relative string, size uint64, tree *wholeTree, found *summary) error {
	parts := strings.SplitN(relative, string(filepath.Separator), 3)
	if len(parts) != 3 || parts[0] != "tile" {
		return fmt.Errorf("%s is no file of a log", relative)
	}
	level, kind := 0, parts[1]
	if kind != "entries" {
		var err error
		if level, err = strconv.Atoi(kind); err != nil || strconv.Itoa(level) != kind {
			return fmt.Errorf("%s is no file of a log", relative)
		}
	}
	tile, err := tlog.ParseTilePath("tile/8/0/" + parts[2])
	if err != nil {
		return fmt.Errorf("%s is no file of a log: %w", relative, err)
	}
	tile.L = level
	first, last := uint64(tile.N)*tileWidth, uint64(tile.N)*tileWidth+uint64(tile.W)
	if last > size>>(uint(level)*tileHeight) {
		return fmt.Errorf("%s is beyond the tree", relative)
	}
	if tile.W < tileWidth && last != size>>(uint(level)*tileHeight) {
		found.Partials++
		if _, err := os.Stat(filepath.Join(directory, name(kind, uint64(tile.N), tileWidth))); err == nil {
			return fmt.Errorf("%s is there beside the full tile", relative)
		}
	}
	var want []byte
	if kind == "entries" {
		for _, leaf := range tree.leaves[first:last] {
			want = append(binary.BigEndian.AppendUint16(want, uint16(len(leaf))), leaf...)
		}
	} else if want, err = tlog.ReadTileData(tile, tree); err != nil {
		return err
	}
	got, err := os.ReadFile(filepath.Join(directory, relative))
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%s has other bytes than the leaves make", relative)
	}
	return nil
}

// tiles reads tiles for sumdb/tlog's own reader.
type tiles struct{ directory string }

func (t *tiles) Height() int { return tileHeight }

func (t *tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	read := make([][]byte, len(wanted))
	for position, tile := range wanted {
		content, _, err := readPartialOrFull(t.directory, strconv.Itoa(tile.L), uint64(tile.N), uint64(tile.W))
		if err != nil {
			return nil, err
		}
		read[position] = content[:min(len(content), tile.W*tlog.HashSize)]
	}
	return read, nil
}

func (t *tiles) SaveTiles([]tlog.Tile, [][]byte) {}

// makeProofs makes proofs from the tiles, for leaves and sizes at powers of two and around them, and verifies them twice.
func makeProofs(directory string, checkpoint *log.Checkpoint, tree *wholeTree, found *summary) error {
	size := checkpoint.Size
	if size == 0 {
		return nil
	}
	root := tlog.Hash(checkpoint.Hash)
	reader := tlog.TileHashReader(tlog.Tree{N: int64(size), Hash: root}, &tiles{directory})
	for _, at := range around(size) {
		index := at - 1
		record, err := tlog.ProveRecord(int64(size), int64(index), reader)
		if err != nil {
			return fmt.Errorf("leaf %d: %w", index, err)
		}
		leaf := tlog.RecordHash(tree.leaves[index])
		if err := tlog.CheckRecord(record, int64(size), root, int64(index), leaf); err != nil {
			return fmt.Errorf("leaf %d: %w", index, err)
		}
		if err := proof.VerifyInclusion(rfc6962.DefaultHasher, index, size, leaf[:], plain(record), root[:]); err != nil {
			return fmt.Errorf("leaf %d: %w", index, err)
		}
		earlier, err := tlog.TreeHash(int64(at), reader)
		if err != nil {
			return fmt.Errorf("size %d: %w", at, err)
		}
		prefix, err := tlog.ProveTree(int64(size), int64(at), reader)
		if err != nil {
			return fmt.Errorf("size %d: %w", at, err)
		}
		if err := tlog.CheckTree(prefix, int64(size), root, int64(at), earlier); err != nil {
			return fmt.Errorf("size %d: %w", at, err)
		}
		if err := proof.VerifyConsistency(rfc6962.DefaultHasher, at, size, plain(prefix), earlier[:], root[:]); err != nil {
			return fmt.Errorf("size %d: %w", at, err)
		}
		found.MadeProofs += 2
	}
	return nil
}

func around(size uint64) []uint64 {
	sizes := map[uint64]bool{1: true, size: true}
	for power := uint64(1); power <= size; power <<= 1 {
		for _, at := range []uint64{power - 1, power, power + 1, size - power, size - power + 1, size/3 + power} {
			if at >= 1 && at <= size {
				sizes[at] = true
			}
		}
	}
	listed := make([]uint64, 0, len(sizes))
	for at := range sizes {
		listed = append(listed, at)
	}
	return listed
}

func plain[T ~[]tlog.Hash](hashes T) [][]byte {
	converted := make([][]byte, len(hashes))
	for position := range hashes {
		converted[position] = hashes[position][:]
	}
	return converted
}

func runFsck(directory, origin string, verifier note.Verifier) error {
	hasher := func(content []byte) ([][]byte, error) {
		bundle := &api.EntryBundle{}
		if err := bundle.UnmarshalText(content); err != nil {
			return nil, err
		}
		hashes := make([][]byte, 0, len(bundle.Entries))
		for _, entry := range bundle.Entries {
			hashes = append(hashes, rfc6962.DefaultHasher.HashLeaf(entry))
		}
		return hashes, nil
	}
	fetcher := &client.FileFetcher{Root: directory}
	return fsck.New(origin, verifier, fetcher, hasher, fsck.Opts{N: 2}).Check(context.Background())
}

// checkGiven verifies what the service gave to its callers.
func checkGiven(file, origin string, verifier note.Verifier, found *summary) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var proofs given
	if err := json.Unmarshal(content, &proofs); err != nil {
		return err
	}
	for position, receipt := range proofs.Receipts {
		if err := checkReceipt(receipt, origin, verifier); err != nil {
			return fmt.Errorf("receipt %d: %w", position, err)
		}
		found.GivenProofs++
	}
	for _, each := range proofs.Consistency {
		err := proof.VerifyConsistency(rfc6962.DefaultHasher, each.First, each.Second, each.Proof, each.FirstRoot, each.SecondRoot)
		if err != nil {
			return fmt.Errorf("consistency of %d and %d: %w", each.First, each.Second, err)
		}
		hashes := make(tlog.TreeProof, len(each.Proof))
		for position, hash := range each.Proof {
			hashes[position] = tlog.Hash(hash)
		}
		first, second := tlog.Hash(each.FirstRoot), tlog.Hash(each.SecondRoot)
		if err := tlog.CheckTree(hashes, int64(each.Second), second, int64(each.First), first); err != nil {
			return fmt.Errorf("consistency of %d and %d: %w", each.First, each.Second, err)
		}
		found.GivenProofs++
	}
	return nil
}

// checkReceipt reads a c2sp.org/tlog-proof whose extra data is the leaf.
func checkReceipt(receipt, origin string, verifier note.Verifier) error {
	head, rest, cut := strings.Cut(receipt, "\n\n")
	lines := strings.Split(head, "\n")
	if !cut || len(lines) < 3 || lines[0] != proofHeader {
		return errors.New("not a tlog-proof")
	}
	extra, isExtra := strings.CutPrefix(lines[1], "extra ")
	number, isIndex := strings.CutPrefix(lines[2], "index ")
	if !isExtra || !isIndex {
		return errors.New("no extra line, or no index line")
	}
	leaf, err := base64.StdEncoding.Strict().DecodeString(extra)
	if err != nil {
		return err
	}
	index, err := strconv.ParseUint(number, 10, 63)
	if err != nil {
		return err
	}
	var record tlog.RecordProof
	for _, line := range lines[3:] {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return err
		}
		record = append(record, hash)
	}
	checkpoint, _, _, err := log.ParseCheckpoint([]byte(rest), origin, verifier)
	if err != nil {
		return err
	}
	if len(record) > bits.Len64(checkpoint.Size) {
		return errors.New("the path is too long")
	}
	hash, root := tlog.RecordHash(leaf), tlog.Hash(checkpoint.Hash)
	if err := tlog.CheckRecord(record, int64(checkpoint.Size), root, int64(index), hash); err != nil {
		return err
	}
	return proof.VerifyInclusion(rfc6962.DefaultHasher, index, checkpoint.Size, hash[:], plain(record), root[:])
}
