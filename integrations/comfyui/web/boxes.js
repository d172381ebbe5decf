// The boxes that UnmaskPlan found go into its empty text field, where they can be edited. Clear the field for a new plan.
import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "unmask.boxes",
  beforeRegisterNodeDef(type, definition) {
    if (definition.name !== "UnmaskPlan") return;
    const before = type.prototype.onExecuted;
    type.prototype.onExecuted = function (output) {
      before?.apply(this, arguments);
      const field = this.widgets?.find((widget) => widget.name === "boxes");
      if (field && !field.value.trim() && output?.boxes) field.value = output.boxes[0];
    };
  },
});
