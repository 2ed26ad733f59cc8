// New nodes of this pack keep their seed from run to run, so that pressing Run again continues the same video.
// Newer hosts can ask for that in the node itself (nodes/host/compat.py, FIXED_SEED); older pages always begin with
// "randomize". Values of saved workflows are set after a node was created, so they stay as they are.
import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "StreamingT2V.fixedSeeds",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("StreamingT2V")) return;
    for (const control of (node.widgets ?? []).flatMap((widget) => widget.linkedWidgets ?? [])) {
      if (control.value === "randomize") control.value = "fixed";
    }
  },
});
